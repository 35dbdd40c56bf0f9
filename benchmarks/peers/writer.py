"""A server that only writes: what a load generator costs is what is left. Prints its port."""

import asyncio
import json

TOKENS, PAUSE = 64, 0.001
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHOICE = {"index": 0, "text": " word", "logprobs": None, "finish_reason": None}
TOLD = {"id": f"cmpl-{0:032x}", "object": "text_completion", "created": 1, "model": "m", "choices": [CHOICE]}


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with the same chunk, over and over."""
    event = b"data: " + json.dumps(TOLD).encode() + b"\n\n"
    chunk = b"%x\r\n%s\r\n" % (len(event), event)
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
            writer.write(HEAD)
            for _ in range(TOKENS):
                writer.write(chunk)
                await writer.drain()
                await asyncio.sleep(PAUSE)
            writer.write(b"0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main() -> None:
    """Serves until it is ended."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
