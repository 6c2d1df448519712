"""The console script `runwire`: a thin door, so that a missing extra is named and nothing else."""

import sys
from importlib.util import find_spec
from typing import Final

# Any one of these missing means that the extra is not installed.
_NEEDED: Final = ("typer", "starlette", "uvicorn", "psycopg", "jwt", "pydantic_settings")


def main() -> None:
    """Run the command line."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"runwire: the command line needs {', '.join(missing)}; "
            'install it with: pip install "runwire[server,embedded]"\n'
        )
        raise SystemExit(1)
    from runwire_realtime.commands import run

    run()


if __name__ == "__main__":
    main()
