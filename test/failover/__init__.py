"""PostgreSQL under Patroni with its leader failing again and again while invitations flow; see ../failover.py."""
