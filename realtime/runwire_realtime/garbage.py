"""How the process collects its garbage: seldom, and not among what stays.

Python looks for cycles after every 700 objects made and not freed, and now and then through all
there are, with everybody waiting. A run makes some dozens of objects and a socket more than that,
so that a process of ours would do little else; and nearly all of its garbage is freed without it.
"""

import gc
from typing import Final

# So many objects made and not freed.
_COLLECT_EVERY: Final = 10_000


def spare_what_stays() -> None:
    """Have the collector leave alone what was made until now, and come less often.

    For processes of our own: in another application its author decides.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY, *gc.get_threshold()[1:])
