"""A stand-in for Clerk's Backend API, for tests that must not reach the internet.

It answers the six operations on organization invitations as Clerk documents them, misbehaves when a request asks for
it, and writes down every request. Where Clerk documents nothing, the code says "inferred" and picks the reading that
is harder on a client.

    command     the command line
    server      sockets, TLS, HTTP
    api         one request: down?, key, path, contract, rate limit, then behaviour or operation
    contract    what every request and every answer must look like, by the schemas in contract.json
    operations  the six operations
    validation  what the schemas leave open: addresses, roles, URLs, the size of metadata
    ledger      the invitations and members that exist
    memory      what is kept when the fake is killed
    behaviours  the table of misbehaviours
    delivery    ways to send an answer, or not to
    errors      Clerk's error catalogue
    rate_limit  budgets by endpoint
    control     the test's own hand, under /_fake/
    journal     what was asked and what came of it
    http_types  requests and replies
    json_text   JSON that keeps the digits of numbers
"""
