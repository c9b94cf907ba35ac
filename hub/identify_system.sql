-- identify_system.sql - by a replication connection: is there one?
IDENTIFY_SYSTEM;
