"""Opens connections to an echo server through the kernel, one after another at a pace, whatever becomes of them.

    python3 -m ilet_bench.probe ADDRESS PORT SECONDS

Prints JSON: {"attempts": [{"began_at": seconds since 1970, "seconds": until its echo was complete or it failed,
"failure": null or what went wrong}, ...]}.
"""

import asyncio
import json
import os
import sys
import time

EVERY_S = 0.02
TIMEOUT_S = 4
MESSAGE_BYTES = 64


async def attempt(address, port):
    """One connection, one message and its echo."""
    began_at, began = time.time(), time.monotonic()
    failure = None
    try:
        await asyncio.wait_for(_echo(address, port), TIMEOUT_S)
    except asyncio.TimeoutError:
        failure = "timeout"
    except (OSError, EOFError, ValueError) as error:
        failure = f"{type(error).__name__}: {error}"
    return {"began_at": began_at, "seconds": round(time.monotonic() - began, 6), "failure": failure}


async def _echo(address, port):
    reader, writer = await asyncio.open_connection(address, port)
    try:
        message = os.urandom(MESSAGE_BYTES)
        writer.write(message)
        if await reader.readexactly(MESSAGE_BYTES) != message:
            raise ValueError("the echo is not what was sent")
    finally:
        writer.close()


async def probe(address, port, seconds):
    """Attempts for so many seconds, and waits for the last."""
    end = time.monotonic() + seconds
    running = []
    while time.monotonic() < end:
        running.append(asyncio.create_task(attempt(address, port)))
        await asyncio.sleep(EVERY_S)
    return await asyncio.gather(*running)


if __name__ == "__main__":
    print(json.dumps({"attempts": asyncio.run(probe(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))}))
