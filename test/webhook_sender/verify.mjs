// Verifies a webhook with the libraries of Svix and of Standard Webhooks, and prints "ok" if both accept it.
//
// WEBHOOK_SECRET, WEBHOOK_BODY   as for sign.mjs
// WEBHOOK_HEADERS                the headers, as JSON, with names that begin with "webhook-"
import { Webhook as StandardWebhook } from 'standardwebhooks';
import { Webhook as SvixWebhook } from 'svix';

const headers = JSON.parse(process.env.WEBHOOK_HEADERS);
for (const Webhook of [SvixWebhook, StandardWebhook]) {
  new Webhook(process.env.WEBHOOK_SECRET).verify(process.env.WEBHOOK_BODY, headers);
}
console.log('ok');
