/*
 * error_rules.c
 *		What Clerk's refusals mean: a table that maps HTTP status and Clerk's
 *		error code to class, SQLSTATE and messages.
 *
 * The table follows Clerk's documented error codes for the operations on
 * organization invitations.  A status that is not in the table means the same
 * as any other 4xx status: see the last rule.
 */
#include "postgres.h"

#include "clerk/error_rules.h"

#define HINT_NOT_FOUND \
	"Check the organization ID, the role, and the inviter, and that the secret key belongs to the same Clerk instance."

/*
 * Rules for requests that concern existing invitations, which take precedence
 * over the general rules.
 */
static const ClerkErrorRule refusals_about_existing[] = {
	{403, "not_a_member_in_organization", CLERK_ERROR_FINAL, ERRCODE_INSUFFICIENT_PRIVILEGE,
		"the requesting user is not a member of the organization",
	"Pass the Clerk user ID of a member, or NULL for no user."},
	{403, "missing_organization_permission", CLERK_ERROR_FINAL, ERRCODE_INSUFFICIENT_PRIVILEGE,
		"the requesting user lacks the required permission in the organization",
	"Pass the Clerk user ID of a member who has permission to manage members, or NULL for no user."},
	{404, "resource_not_found", CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
		"the organization, invitation, or user does not exist",
	"Check the organization ID and the invitation ID, and that the secret key belongs to the same Clerk instance."},
	{404, "organization_not_found_or_unauthorized", CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
		"the organization does not exist",
	"Check the organization ID, and that the secret key belongs to the same Clerk instance."},
};

/* General rules.  The first rule that matches applies. */
static const ClerkErrorRule refusals[] = {
	/* These depend on the status alone, whatever the body contains. */
	{401, NULL, CLERK_ERROR_CONFIGURATION, ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
	"Clerk does not accept the secret key", CLERK_HINT_KEY},
	{429, NULL, CLERK_ERROR_RATE_LIMITED, ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
	"Clerk's rate limit was exceeded", NULL},

	/* Clerk already has the invitation or the member. */
	{0, CLERK_CODE_PENDING_ALREADY, CLERK_ERROR_EXISTS, ERRCODE_UNIQUE_VIOLATION,
		"an invitation for this address is already pending",
	"The pending invitation remains valid. To replace it, revoke it first."},
	{0, CLERK_CODE_DUPLICATE_RECORD, CLERK_ERROR_EXISTS, ERRCODE_UNIQUE_VIOLATION,
		"an invitation for this address is already pending",
	"The pending invitation remains valid. To replace it, revoke it first."},
	{0, CLERK_CODE_ALREADY_A_MEMBER, CLERK_ERROR_EXISTS, ERRCODE_UNIQUE_VIOLATION,
		"this address already belongs to a member of the organization",
	"No invitation is needed."},

	/* Quotas and billing. */
	{0, "organization_membership_quota_exceeded", CLERK_ERROR_FINAL, ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		"the organization has reached its membership limit",
	"Both members and pending invitations count toward the limit. Raise the organization's limit in Clerk, or revoke pending invitations."},
	{0, "dev_monthly_email_limit_exceeded", CLERK_ERROR_FINAL, ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		"the development instance has reached its monthly e-mail limit",
	"Use a production instance, or pass notify => false and deliver the link yourself."},
	{0, "quota_exceeded", CLERK_ERROR_FINAL, ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		"a quota of the Clerk instance is exhausted",
	"Raise the quota in Clerk's Dashboard."},
	{402, "insufficient_seats", CLERK_ERROR_FINAL, ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		"the organization's plan has no seats left",
	"Buy seats for the organization, or revoke pending invitations."},
	{402, NULL, CLERK_ERROR_FINAL, ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
		"the organization's plan does not allow this",
	"Check the plan and billing of the organization in Clerk's Dashboard."},

	/* Privileges. */
	{403, "not_a_member_in_organization", CLERK_ERROR_FINAL, ERRCODE_INSUFFICIENT_PRIVILEGE,
		"the inviter is not a member of the organization",
	"Pass the Clerk user ID of a member, or NULL for no inviter."},
	{403, "missing_organization_permission", CLERK_ERROR_FINAL, ERRCODE_INSUFFICIENT_PRIVILEGE,
		"the inviter lacks permission to invite people to the organization",
	"Pass the Clerk user ID of a member who has permission to manage members, or NULL for no inviter."},
	{403, "organization_not_enabled_in_instance", CLERK_ERROR_FINAL, ERRCODE_INSUFFICIENT_PRIVILEGE,
		"organizations are not enabled in the Clerk instance",
	"Enable organizations in Clerk's Dashboard."},
	{403, NULL, CLERK_ERROR_FINAL, ERRCODE_INSUFFICIENT_PRIVILEGE,
	"permission denied by Clerk", NULL},

	/* Not found. */
	{404, "organization_invitation_not_pending", CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
	"the invitation is no longer pending", NULL},
	{404, "resource_not_found", CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
	"the organization, role, or inviter does not exist", HINT_NOT_FOUND},
	{404, "organization_not_found_or_unauthorized", CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
	"the organization does not exist", HINT_NOT_FOUND},
	{404, NULL, CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
	"Clerk could not find the requested resource", "Check \"clerk_invite.api_url\"."},

	/* A conflict with another change. */
	{409, NULL, CLERK_ERROR_TRY_LATER, ERRCODE_OBJECT_IN_USE,
	"Clerk cannot process the request at the moment", NULL},

	/* The form of the request. */
	{0, "api_version_invalid", CLERK_ERROR_CONFIGURATION, ERRCODE_INVALID_PARAMETER_VALUE,
		"Clerk does not support the requested API version",
	"Check \"clerk_invite.api_version\"."},
	{0, "exclusive_organization_membership", CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
		"the person belongs to an organization that allows no other membership",
	NULL},
	{0, "bulk_size_exceeded", CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
	"the request contains more invitations than Clerk allows", NULL},
	{413, NULL, CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
	"the request is too large for Clerk", "Clerk allows at most 8 kB of metadata."},
	{0, NULL, CLERK_ERROR_FINAL, ERRCODE_INVALID_PARAMETER_VALUE,
	"Clerk refused the request", NULL},
};

static const ClerkErrorRule *find_rule(const ClerkErrorRule *rules, int count,
									   int http_status, const char *code);

/*
 * Returns the rule for a response with an HTTP status from 400 to 499 to a
 * request with this effect.  "code" is Clerk's error code, or NULL.  The
 * result is never NULL.
 */
const ClerkErrorRule *
clerk_find_error_rule(ClerkEffect effect, int http_status, const char *code)
{
	const ClerkErrorRule *rule = NULL;

	if (effect != CLERK_EFFECT_CREATES && effect != CLERK_EFFECT_CREATES_SEVERAL)
		rule = find_rule(refusals_about_existing,
						 lengthof(refusals_about_existing), http_status, code);
	if (rule == NULL)
		rule = find_rule(refusals, lengthof(refusals), http_status, code);
	return rule;
}

/*
 * Returns the first rule that matches, or NULL.  The last general rule matches
 * everything.
 */
static const ClerkErrorRule *
find_rule(const ClerkErrorRule *rules, int count, int http_status,
		  const char *code)
{
	for (const ClerkErrorRule *rule = rules; rule < rules + count; rule++)
		if ((rule->http_status == 0 || rule->http_status == http_status) &&
			(rule->code == NULL ||
			 (code != NULL && strcmp(rule->code, code) == 0)))
			return rule;
	return NULL;
}
