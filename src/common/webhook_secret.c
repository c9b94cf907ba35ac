/*
 * webhook_secret.c
 *		Reads the secrets with which Clerk's webhooks are signed.
 *
 * No text that is produced here contains a secret or a part of it.
 */
#include "postgres.h"

#include "common/base64.h"
#include "common/secret_file.h"
#include "common/webhook_secret.h"

#define PREFIX "whsec_"

static const char *read_secrets(const ClerkSecretFile *file);
static const char *read_secret(const char *text, size_t length,
							   ClerkWebhookSecret *secret);

static struct
{
	int			count;
	ClerkWebhookSecret secrets[CLERK_WEBHOOK_SECRETS_MAX];
}			last_read;

/*
 * Reads the secrets in a file: one in each line, as Clerk's Dashboard shows it,
 * which is "whsec_" and base64; empty lines are ignored.  Returns their number,
 * and the secrets in *secrets, which is valid until the next call.  If the file
 * cannot be used, returns 0 and sets *reason to a sentence that is also valid
 * until the next call.
 */
int
clerk_webhook_secrets_from_file(const char *path,
								const ClerkWebhookSecret **secrets,
								const char **reason)
{
	static ClerkSecretFile file;

	*secrets = last_read.secrets;
	if (clerk_secret_file_is_current(&file, path))
		return last_read.count;
	if (!clerk_secret_file_read(&file, path, "webhook secret file", reason))
		return 0;
	*reason = read_secrets(&file);
	file.valid = (*reason == NULL);
	return file.valid ? last_read.count : 0;
}

/* Returns what is wrong, or NULL if nothing is. */
static const char *
read_secrets(const ClerkSecretFile *file)
{
	const char *white_space = " \t\r\n";
	const char *text = file->content;

	if (strlen(text) < file->length)
		return "The webhook secret file contains an invalid character.";
	last_read.count = 0;
	while (*(text += strspn(text, white_space)) != '\0')
	{
		size_t		length = strcspn(text, white_space);
		const char *wrong;

		if (last_read.count == CLERK_WEBHOOK_SECRETS_MAX)
			return "The webhook secret file contains too many secrets.";
		wrong = read_secret(text, length, &last_read.secrets[last_read.count++]);
		if (wrong != NULL)
			return wrong;
		text += length;
	}
	if (last_read.count == 0)
		return "The webhook secret file is empty.";
	return NULL;
}

/* Returns what is wrong, or NULL if nothing is. */
static const char *
read_secret(const char *text, size_t length, ClerkWebhookSecret *secret)
{
	/* The server's decoder wants room for whole groups of three bytes. */
	char		bytes[CLERK_WEBHOOK_SECRET_MAX + 3];

	if (length < strlen(PREFIX) || strncmp(text, PREFIX, strlen(PREFIX)) != 0)
		return "A webhook secret begins with \"" PREFIX "\".";
	secret->length = pg_b64_decode(text + strlen(PREFIX),
								   (int) (length - strlen(PREFIX)),
								   (void *) bytes, sizeof(bytes));
	if (secret->length < CLERK_WEBHOOK_SECRET_MIN ||
		secret->length > CLERK_WEBHOOK_SECRET_MAX)
		return "A webhook secret must be \"" PREFIX "\" and 24 to 64 bytes in base64.";
	memcpy(secret->bytes, bytes, secret->length);
	return NULL;
}
