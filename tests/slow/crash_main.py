"""Run as a process of its own: writers that are killed, and writers that race. Prints what happened as JSON.

python -m tests.slow.crash_main (kill | race) FOLDER ROUNDS SEED
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.scores import ScoreStore
from tests.unit.scores import made

TEXTS = range(12)
MASKS = (made.ACTION, made.THOUGHT)


def kill(folder, rounds, seed):
    """Kill a writer `rounds` times; after each time look at every file, at the end finish the work."""
    rng = random.Random(seed)
    leftovers = acknowledged = 0
    for turn in range(rounds):
        order = rng.sample([(text, mask) for text in TEXTS for mask in MASKS], 2 * len(TEXTS))
        done = _killed(folder, order, rng.uniform(0, 0.04))
        leftovers += len(list(folder.glob(".*.tmp")))
        acknowledged += len(done)
        store = ScoreStore.open(folder, made.signature())  # tidies up
        assert not list(folder.glob(".*.tmp")), "temporary files stay behind"
        for text, mask in done:
            assert store.get(f"{text:064x}", mask, 10), f"what was written is lost (round {turn})"
        _check(store)
    for text in TEXTS:
        if store.get(f"{text:064x}", made.BOTH, 10) is None:
            made.put(store, text)
    _check(store)
    assert len(store) == len(TEXTS)
    return {"rounds": rounds, "leftovers": leftovers, "acknowledged": acknowledged}


def _killed(folder, order, delay):
    """Start a writer, kill it `delay` seconds after its first file; what it said was written."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        store = ScoreStore.open(folder, made.signature())
        while True:
            for place, (text, mask) in enumerate(order):
                made.put(store, text, mask)
                os.write(write, bytes([place]))
    os.close(write)
    received = os.read(read, 1)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    received += b"".join(iter(lambda: os.read(read, 4096), b""))
    os.close(read)
    return {order[place] for place in received}


def _check(store):
    for key in store:
        mask = made.BOTH & type(made.BOTH)(store.entry(key).mask)
        assert made.same(store.read(key), made.scores_of(int(key, 16), mask)), key
        assert store.text(key).rendered == made.text_of(int(key, 16)).rendered


def race(folder, rounds, seed):
    """Start writers of two kinds at once in new folders: one kind wins, and its writers lose nothing of each other."""
    refused = 0
    for turn in range(rounds):
        place = folder / str(turn)
        read, write = os.pipe()
        children = [_racer(place, read, write, index, seed + turn) for index in range(4)]
        os.close(read)
        os.close(write)  # the starting shot
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        store = ScoreStore.open(place)
        winner = 0 if store.signature["run"]["dtype"] == "float32" else 1
        assert codes == [0 if index % 2 == winner else 3 for index in range(4)], codes
        refused += codes.count(3)
        for key in store:
            want = made.scores_of(int(key, 16), run=store.signature["run"])
            assert made.same(store.read(key), want), "one writer took another's tokens away"
        assert len(store) == 4
        assert not list(place.glob(".*.tmp"))
    return {"rounds": rounds, "refused": refused}


def _racer(place, read, write, index, seed):
    child = os.fork()
    if child:
        return child
    os.close(write)
    os.read(read, 1)  # until everybody is there
    try:
        store = ScoreStore.open(place, made.signature(dtype=("float32", "bfloat16")[index % 2]))
    except SettingsError:
        os._exit(3)
    for text in random.Random(seed + index).sample(range(4), 4):
        made.put(store, text, MASKS[index // 2])
    os._exit(0)


if __name__ == "__main__":
    print(json.dumps({"kill": kill, "race": race}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
