"""A connection to a server that is some milliseconds away.

    delaying_proxy.py PORT MILLISECONDS

Listens on a free port of the loopback address and prints its number.  What it
receives for and from the server on the given port it passes on half a round trip
later.  A client's first bytes wait a round trip more, for the TCP handshake, which
on loopback takes no time.
"""

import asyncio
import sys


async def carry(reader, writer, delay, delay_of_first):
    loop = asyncio.get_running_loop()
    pending = asyncio.Queue()

    async def receive():
        not_before = loop.time() + delay_of_first
        while data := await reader.read(65536):
            pending.put_nowait((max(loop.time() + delay, not_before), data))
        pending.put_nowait((loop.time() + delay, b""))

    receiver = loop.create_task(receive())
    try:
        while True:
            due, data = await pending.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                break
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except ConnectionError:
        pass
    finally:
        receiver.cancel()


async def serve(client_reader, client_writer, port, delay):
    server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.gather(
        carry(client_reader, server_writer, delay, 3 * delay),
        carry(server_reader, client_writer, delay, 0),
    )
    client_writer.close()
    server_writer.close()


async def main():
    port = int(sys.argv[1])
    delay = float(sys.argv[2]) / 2000
    server = await asyncio.start_server(
        lambda reader, writer: serve(reader, writer, port, delay), "127.0.0.1", 0
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


asyncio.run(main())
