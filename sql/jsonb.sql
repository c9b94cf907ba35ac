--
-- Public and private metadata are sent and returned unchanged.
--
CREATE EXTENSION clerk_invite;

-- Invites with this document as public metadata, and with an object around it
-- as private metadata.  Returns whether both come back equal, and with the same
-- text; null if the database encoding lacks one of the document's characters.
CREATE FUNCTION crosses_unchanged(name text, document text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    sent_public jsonb;
    sent_private jsonb;
    got clerk_organization_invitation;
BEGIN
    BEGIN
        sent_public := document;
        sent_private := jsonb_build_object('private', sent_public);
    EXCEPTION WHEN untranslatable_character OR feature_not_supported THEN
        RETURN NULL;
    END;
    got := clerk_create_organization_invitation(
        'org_test', NULL, replace(name, ' ', '-') || '@example.com', 'org:member',
        metadata => sent_public, private_metadata => sent_private);
    RETURN got.public_metadata = sent_public
        AND got.private_metadata = sent_private
        AND got.public_metadata::text = sent_public::text
        AND got.private_metadata::text = sent_private::text;
END
$$;

SELECT name, crosses_unchanged(name, document)
FROM (VALUES
    ('empty object', '{}'),
    ('empty members', '{"a": {}, "b": [], "c": "", "": 1}'),
    ('literals', '{"yes": true, "no": false, "nothing": null, "all": [true, false, null]}'),
    ('white space and order', E' {\n\t"b" : 1 , "a":\r\n[ ]  } '),
    ('repeated key', '{"a": 1, "a": 2}'),
    ('own field names', '{"id": "orginv_1", "public_metadata": {"url": null}, "errors": []}'),
    ('small numbers', '{"n": [0, -0, 0.0, -0.0, 1, -1, 0.5]}'),
    ('trailing zeros', '{"n": [1.10, 1.0, 100, 0.000, 1.10e2, 12.50e-3]}'),
    ('exponents', '{"n": [1e2, 1E2, 1e+2, 1.5e-7, 123e-2]}'),
    ('huge exponent', '{"n": 1e400}'),
    ('tiny exponent', '{"n": -1e-400}'),
    ('thirty digits', '{"n": 123456789012345678901234567890}'),
    ('beyond double', '{"n": [9007199254740993, 18446744073709551616, 0.1234567890123456789012345678901]}'),
    ('quotes and backslashes', '{"a\"b\\c/d\/e": "\"\\\/ \\u0041 \\\" \\n"}'),
    ('control characters', '{"c": "\b\f\n\r\t\u0001\u001f\u007f", "\u0001": 1}'),
    ('ASCII escapes', '{"c": "\u0041\u0022\u005c\u002f\u0027", "\u0061": 1}'),
    ('markup', '{"<b>&amp;</b>": "<script>&''`</script>"}'),
    ('SQL', '{"''; DROP TABLE members; --": "$1 %s {0} $$"}'),
    ('nested', '{"a": [[], [[]], {"b": [{"c": {"d": [1, {"e": null}]}}]}]}'))
    AS documents (name, document)
UNION ALL
SELECT 'deep', crosses_unchanged('deep',
    '{"a": ' || repeat('[', 500) || repeat(']', 500) || '}')
UNION ALL
SELECT 'many members', crosses_unchanged('many members', (
    SELECT json_object_agg('key_' || n, n)::text
    FROM generate_series(1, 400) AS n))
UNION ALL
SELECT 'long text', crosses_unchanged('long text',
    jsonb_build_object('text', repeat('x', 8000))::text);

-- Every script that the database encoding can represent.
SELECT name, coalesce(crosses_unchanged(name, document), true) AS crosses_unchanged
FROM (VALUES
    ('Latin', '{"stra\u00dfe": "\u00c5ngstr\u00f6m, na\u00efve, \u0141\u00f3d\u017a, \u0130stanbul"}'),
    ('combining accents', '{"e\u0301": "\u00e9"}'),
    ('Greek', '{"\u03cc\u03bd\u03bf\u03bc\u03b1": "\u0394\u03b9\u03bf\u03bd\u03cd\u03c3\u03b9\u03bf\u03c2"}'),
    ('Cyrillic', '{"\u0438\u043c\u044f": "\u042e\u043b\u0438\u044f"}'),
    ('Hebrew', '{"\u05e9\u05dd": "\u05d3\u05d5\u05d3"}'),
    ('Arabic', '{"\u0627\u0633\u0645": "\u0645\u0631\u064a\u0645\u200f"}'),
    ('Devanagari', '{"\u0928\u093e\u092e": "\u0915\u0943\u0937\u094d\u0923"}'),
    ('Thai', '{"\u0e0a\u0e37\u0e48\u0e2d": "\u0e2a\u0e21\u0e0a\u0e32\u0e22"}'),
    ('Chinese', '{"\u540d\u5b57": "\u5f20\u4f1f"}'),
    ('Japanese', '{"\u6c0f\u540d": "\u5c71\u7530 \u592a\u90ce\u3000\uff76\uff85"}'),
    ('Korean', '{"\uc774\ub984": "\uae40\uc720\uc9c4"}'),
    ('beyond the first plane', '{"\ud83d\ude00": "\ud83d\udc69\u200d\ud83d\udd2c \ud840\udc00 \ud834\udd1e \udbff\udffd"}'),
    ('line ends of JavaScript', '{"a\u2028b": "c\u2029d"}'),
    ('specials', '{"\ufeff": "\ufeff\ufffd\u00a0\u0085\u00ad\ue000"}'))
    AS documents (name, document);

-- NUL characters are not allowed: jsonb itself rejects them, and nothing is
-- sent.
\set VERBOSITY sqlstate
SELECT status
FROM clerk_create_organization_invitation(
    'org_test', NULL, 'nul@example.com', 'org:member', metadata => '{"a": "\u0000"}');
SELECT status
FROM clerk_create_organization_invitation(
    'org_test', NULL, 'nul@example.com', 'org:member', private_metadata => '{"\u0000": 1}');
SELECT status
FROM clerk_create_organization_invitation('org_test', NULL, 'nul@example.com', 'org:member');

DROP FUNCTION crosses_unchanged(text, text);
DROP EXTENSION clerk_invite;
