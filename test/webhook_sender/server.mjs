// Hands webhooks to the database, as an application in front of it does.  Connects with PGHOST, PGDATABASE and so
// on; prints its port.
import { createServer } from 'node:http';
import pg from 'pg';

const pool = new pg.Pool();
const server = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks).toString('utf8');
  try {
    const { rows } = await pool.query('SELECT clerk_receive_webhook($1, $2) AS done', [body, request.headers]);
    response.writeHead(200).end(rows[0].done);
  } catch (error) {
    const status = /^PT(\d{3})$/.exec(error.code)?.[1] ?? 500;
    response.writeHead(Number(status)).end();
  }
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
