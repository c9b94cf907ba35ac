// Signs a body with the libraries of Svix and of Standard Webhooks, and prints the headers, a line of JSON for each.
//
// WEBHOOK_SECRET   the secret, with its prefix
// WEBHOOK_BODY     the body
import { Webhook as StandardWebhook } from 'standardwebhooks';
import { Webhook as SvixWebhook } from 'svix';

const body = process.env.WEBHOOK_BODY;
for (const [prefix, Webhook] of [['svix', SvixWebhook], ['webhook', StandardWebhook]]) {
  const id = `msg_${prefix}_${process.hrtime.bigint()}`;
  const now = new Date();
  console.log(JSON.stringify({
    [`${prefix}-id`]: id,
    [`${prefix}-timestamp`]: String(Math.floor(now.getTime() / 1000)),
    [`${prefix}-signature`]: new Webhook(process.env.WEBHOOK_SECRET).sign(id, now, body),
  }));
}
