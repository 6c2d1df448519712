"""Follow one run with its streams by tokens of two seconds, and print what is seen as JSON lines.

python follow_by_tokens.py RUN
"""

import asyncio
import json
import os
import sys

from runwire import AsyncRunwire


async def main(run: str) -> None:
    """Follow it to its end; each token is asked for with the API key."""
    async with AsyncRunwire() as issuer:

        async def token() -> str:
            return await issuer.auth.create_public_token(
                scopes={"read": {"runs": [run]}}, expiration_time="2s"
            )

        async with AsyncRunwire(
            api_url=os.environ["RUNWIRE_FOLLOW_URL"], access_token=token
        ) as client:
            following = client.runs.subscribe_to_run(run, mode="every").with_streams()
            async for event in following:
                said = {"type": event.type, "revision": event.run.revision, "seq": event.seq}
                sys.stdout.write(json.dumps({**said, "gap": event.gap}) + "\n")
                sys.stdout.flush()
    sys.stdout.write('{"done": true}\n')


asyncio.run(main(sys.argv[1]))
