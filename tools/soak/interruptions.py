"""Interrupted at any moment, the server does the next prompt as if nothing had been."""

from __future__ import annotations

import math
import random
import time
from collections import Counter

from tools.server import ComfyServer, Interrupted, PromptError
from tools.soak.prompts import Prompts, digest
from tools.soak.result import Result


def interrupt(server: ComfyServer, count: int, seed: int, reference_every: int = 1, seconds: float = math.inf) -> Result:
    """Interrupts `count` prompts, each after a random time, and runs the reference prompt after each of them; fewer when
    `seconds` are over.

    Loading is interrupted as well: every third prompt asks for the model in another form.
    """
    result, chance, prompts = Result("interruptions"), random.Random(seed), Prompts(server)
    expected = digest(server.run(prompts.reference(), 900))
    usual, where = 3.0, Counter()
    wanted, end = count, time.monotonic() + seconds
    for number in range(wanted):
        if time.monotonic() > end:
            count = number
            break
        size = {"size": "tiled (large pictures)", "size__detail": 4.0, "size__overlap": 0.25}
        prompt = prompts.estimate(320 + number, 240, size, fold=number % 3 != 0, dtype="fp32" if number % 3 == 2 else "default")
        prompt["raw"] = prompts.node("FE2ESaveNPZ", geometry=["estimate", 0], filename_prefix="interrupted")
        began = time.monotonic()
        identity = server.queue(prompt)
        time.sleep(chance.uniform(0, usual))
        server.interrupt()
        try:
            server.wait(identity, 900)
            where["ended before"] += 1
        except Interrupted as stopped:
            where[str(stopped).rpartition("(")[2].rstrip(")")] += 1
        except PromptError as error:
            result.require(False, f"interruption {number}: {error}")
        took = time.monotonic() - began
        # so that moments are spread over a prompt, however fast the machine is
        usual = max(usual, took) if where["ended before"] == 0 else 0.9 * usual + 0.1 * took
        if (number + 1) % reference_every == 0:
            found = digest(server.run(prompts.reference(), 900))
            result.require(found == expected, f"after interruption {number} the reference prompt gave another result")
    stopped = count - where["ended before"]
    result.require(stopped > 0, "no prompt was interrupted: all had ended before")
    result.done = f"{count} prompts interrupted after a random time (seed {seed}), the reference prompt after each"
    if count < wanted:
        result.done += f"; {wanted} were asked for, {seconds / 60:.0f} min were over"
    places = ", ".join(f"{n} in {place}" for place, n in where.most_common() if place != "ended before")
    result.found = f"{stopped} stopped ({places}), {where['ended before']} had ended; reference result the same to the last bit"
    left = [path.name for path in server.output.rglob(".*")]
    result.require(not left, f"left in the output folder: {left[:5]}")
    return result
