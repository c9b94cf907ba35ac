"""Clerk's error catalogue, as far as organization invitations can meet it.

Status, texts and meta follow Clerk's published catalogue of Backend API errors. Entries marked "inferred" are named by
Clerk's SDK sources or by users, without published texts.
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional


class Entry(NamedTuple):
    """One code: its usual HTTP status, its texts with {fields} to fill in, and how its meta is made of the fields."""

    status: int
    message: str
    long_message: str
    meta: Optional[Callable[[dict], dict]] = None


def _names_parameter(fields: dict) -> dict:
    return {"param_name": fields["param"]}


CATALOGUE = {
    "organization_invitation_not_unique": Entry(
        400,
        "organization invitation not unique",
        "Organizations cannot have duplicate pending invitations for an email address.",
        lambda fields: {"email_addresses": fields["addresses"]} if fields["addresses"] else {},
    ),
    "duplicate_record": Entry(
        400,
        "duplicate record",
        "There are already pending invitations for the following email addresses: {address_list}",
        lambda fields: {"email_addresses": fields["addresses"]},
    ),
    "already_a_member_in_organization": Entry(
        400, "already a member", "{address_list} is already a member of the organization."
    ),
    "request_body_invalid": Entry(
        400,
        "Request body invalid",
        "The request body is invalid. Please consult the API documentation for more information.",
    ),
    "bulk_size_exceeded": Entry(
        400, "bulk size exceeded", "Parameters exceed the maximum allowed bulk processing size of {limit}."
    ),
    "api_version_invalid": Entry(  # inferred texts
        400, "Invalid API version", "The Clerk-API-Version header does not name a known version of the API."
    ),
    "bad_request": Entry(400, "Bad request", "Bad request"),
    "dev_monthly_email_limit_exceeded": Entry(  # inferred texts
        400,
        "monthly email limit exceeded",
        "You have reached the monthly limit of emails for a development instance.",
    ),
    "authentication_invalid": Entry(
        401,
        "Invalid authentication",
        "Unable to authenticate the request, you need to supply an active session",
    ),
    "authorization_header_format_invalid": Entry(
        401,
        "Invalid Authorization header format",
        "Invalid Authorization header format. Must be 'Bearer <YOUR_API_KEY>'",
    ),
    "clerk_key_invalid": Entry(
        401,
        "The provided Clerk Secret Key is invalid. Make sure that your Clerk Secret Key is correct.",
        "The provided Clerk Secret Key is invalid. Make sure that your Clerk Secret Key is correct.",
    ),
    "could_not_authenticate_request": Entry(
        401, "Could not authenticate request.", "Could not authenticate request."
    ),
    "insufficient_seats": Entry(
        402,
        "Insufficient seats",
        "You have reached the seat limit for your current plan.",
        lambda fields: {"seats_quantity": fields["limit"] + 1},
    ),
    "unsupported_subscription_plan_features": Entry(
        402,
        "Unsupported plan features",
        "Some features are not supported in your current plan. Upgrade your subscription to unlock them.",
        lambda fields: {"unsupported_features": ["custom_roles"]},
    ),
    "organization_membership_quota_exceeded": Entry(
        403,
        "organization membership quota exceeded",
        "You have reached your limit of {limit} organization memberships, including outstanding invitations.",
    ),
    "not_a_member_in_organization": Entry(
        403,
        "not a member",
        "Current user is not a member of the organization. Only organization members can perform this action.",
    ),
    "missing_organization_permission": Entry(
        403,
        "missing permission",
        "Current user is missing an organization permission.",
        lambda fields: {"permissions": ["org:sys_memberships:manage"]},
    ),
    "authorization_invalid": Entry(
        403, "Unauthorized request", "You are not authorized to perform this request"
    ),
    "organization_not_enabled_in_instance": Entry(
        403,
        "access denied",
        "The organizations feature is not enabled for this instance. You can enable it at"
        " https://dashboard.clerk.com.",
    ),
    "not_allowed_access": Entry(
        403,
        "Access not allowed.",
        "{address_list} is not allowed to access this application.",
        lambda fields: {"identifiers": fields["addresses"]},
    ),
    "quota_exceeded": Entry(403, "Quota exceeded", "Quota exceeded, you have reached your limit."),
    "resource_not_found": Entry(404, "not found", "{what} not found"),
    "organization_not_found_or_unauthorized": Entry(
        404,
        "not found or unauthorized",
        "Given organization not found, or you don't have permission to access the organization",
    ),
    "organization_invitation_not_pending": Entry(  # inferred texts
        404, "not pending", "The organization invitation is not pending, so it cannot be revoked."
    ),
    "method_not_allowed": Entry(405, "Method not allowed", "Method not allowed"),  # inferred
    "conflict": Entry(409, "Conflict", "Conflict"),
    "resource_locked": Entry(
        409,
        "resource busy",
        "This resource is currently being modified by another request. Please try again.",
    ),
    "role_migration_in_progress": Entry(  # inferred texts
        409, "role migration in progress", "The organization's roles are being migrated. Please try again later."
    ),
    "gone": Entry(410, "gone", "This resource is no longer available."),  # inferred
    "request_body_too_large": Entry(
        413, "Request body too large", "The request body exceeds the maximum allowed size of {limit} bytes."
    ),
    "unsupported_content_type": Entry(
        415,
        "Content-Type is unsupported",
        "Content-Type {value} is unsupported. You should use application/json instead.",
    ),
    "form_param_missing": Entry(422, "is missing", "{param} must be included.", _names_parameter),
    "form_param_unknown": Entry(
        422, "is unknown", "{param} is not a valid parameter for this request.", _names_parameter
    ),
    "form_param_type_invalid": Entry(422, "is invalid", "`{param}` must be a `{wanted}`.", _names_parameter),
    "form_param_format_invalid": Entry(422, "is invalid", "{param} must be a valid {wanted}.", _names_parameter),
    "form_param_value_invalid": Entry(
        422,
        "is invalid",
        "{value} does not match one of the allowed values for parameter {param}",
        _names_parameter,
    ),
    "form_param_exceeds_allowed_size": Entry(
        422, "exceeds allowed size", "{param} exceeds the maximum allowed size of {limit} bytes.", _names_parameter
    ),
    "exclusive_organization_membership": Entry(  # inferred texts
        422,
        "exclusive organization membership",
        "{address_list} belongs to an organization that excludes other memberships.",
    ),
    "too_many_requests": Entry(429, "Too many requests", "Too many requests. Please try again in a bit."),
    "internal_clerk_error": Entry(
        500,
        "Oops, an unexpected error occurred",
        "There was an internal error on our servers. We've been notified and are working on fixing it.",
    ),
    "bad_gateway": Entry(502, "Bad gateway", "The server received an invalid answer."),  # inferred
    "service_unavailable": Entry(503, "Service unavailable", "The service is temporarily unavailable."),
    "maintenance_mode": Entry(  # inferred texts
        503, "System under maintenance", "We are undergoing maintenance. Please try again later."
    ),
    "gateway_timeout": Entry(504, "Gateway Timeout", "A request to a 3rd party service timed out"),
}

CODE_OF_SERVER_ERROR = {
    500: "internal_clerk_error",
    502: "bad_gateway",
    503: "service_unavailable",
    504: "gateway_timeout",
}

_DEFAULT_FIELDS = {
    "addresses": [],
    "limit": 5,
    "param": "email_address",
    "value": "value",
    "wanted": "email address",
    "what": "Resource",
}


class ClerkError(Exception):
    """A refusal, with everything its answer needs."""

    def __init__(self, code: str, status: Optional[int] = None, headers=(), **fields):
        super().__init__(code)
        self.code = code
        self.status = status or entry_for(code).status
        self.headers = list(headers)
        self.error = error_object(code, **fields)


def entry_for(code: str) -> Entry:
    """The catalogue's entry, or one made up of the code's own words: Clerk has more codes than it documents."""
    words = code.replace("_", " ")
    if code.startswith("form_param_"):
        return CATALOGUE.get(code) or Entry(422, "is invalid", "{param}: " + words, _names_parameter)
    return CATALOGUE.get(code) or Entry(400, words, words.capitalize() + ".")


def error_object(code: str, **fields) -> dict:
    """One member of `errors`, its texts filled in."""
    entry = entry_for(code)
    fields = {**_DEFAULT_FIELDS, **fields}
    fields["address_list"] = ", ".join(fields["addresses"])
    error = {
        "message": entry.message.format_map(fields),
        "long_message": entry.long_message.format_map(fields),
        "code": code,
    }
    meta = entry.meta(fields) if entry.meta else {}
    if meta:
        error["meta"] = meta
    return error
