"""A process that forks has one writer still: itself."""

import os
import subprocess
import sys
from pathlib import Path

WRITES = """
import os, sys, time
from abi_jax import wdbx

db = wdbx.open(sys.argv[1])
c = db.create_collection("c", 2)
c.upsert(["before"], [[1, 1]])
reader = wdbx.open(sys.argv[1], "r")
there, here = os.pipe()
child = os.fork()
if child == 0:
    said = []
    for change in (lambda: c.upsert(["child"], [[2, 1]]), db.seal, lambda: db.tag("child")):
        try:
            change()
            said.append("written")
        except wdbx.WdbxError as error:
            said.append(str(error).split()[-1])
    said += c.ids()
    db.close()
    reader.close()
    os.write(here, " ".join(said).encode())
    time.sleep(300)
    os._exit(0)
print(os.read(there, 1000).decode())
c.upsert(["parent"], [[3, 1]])
print(len(db.stats().pins), "pinned")
db.close()
with wdbx.open(sys.argv[1]) as again:
    print(*again.collection("c").ids(), again.verify())
os.kill(child, 9)
os.waitpid(child, 0)
"""


def test_only_the_process_that_opened_it_writes(tmp_path: Path) -> None:
    """A fork is refused, and can read; what it closes stays its parent's, who leaves nothing locked to it."""
    done = subprocess.run(
        [sys.executable, "-c", WRITES, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.stdout.splitlines() == ["it it it before", "1 pinned", "before parent []"], done.stderr
