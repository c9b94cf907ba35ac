# The official PostgreSQL image with clerk_invite installed.  To use it, run
# CREATE EXTENSION in a database.
#
#	docker build --build-arg PG_MAJOR=17 --tag postgres-clerk-invite .
ARG PG_MAJOR=17

FROM postgres:${PG_MAJOR} AS build
ARG PG_MAJOR
RUN apt-get update \
	&& apt-get install -y --no-install-recommends gcc make \
		libcurl4-openssl-dev "postgresql-server-dev-$PG_MAJOR"
COPY . /source
RUN make -C /source && make -C /source install DESTDIR=/installed

FROM postgres:${PG_MAJOR}
RUN apt-get update \
	&& apt-get install -y --no-install-recommends ca-certificates libcurl4 \
	&& rm -rf /var/lib/apt/lists/*
COPY --from=build /installed /
