-- error_of.sql - included by regression tests that look at errors closely

-- What a statement fails with; SQLSTATE 00000 if it does not.
CREATE FUNCTION error_of(
    statement text,
    OUT "SQLSTATE" text, OUT message text, OUT detail text, OUT hint text,
    OUT constraint_name text, OUT column_name text
)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
    "SQLSTATE" := '00000';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS
        "SQLSTATE" = RETURNED_SQLSTATE,
        message = MESSAGE_TEXT,
        detail = PG_EXCEPTION_DETAIL,
        hint = PG_EXCEPTION_HINT,
        constraint_name = CONSTRAINT_NAME,
        column_name = COLUMN_NAME;
END
$$;
