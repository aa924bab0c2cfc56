"""A stand-in for Slurm, SGE and PBS: runs submitted scripts at once, array task by array task, as their heads ask.

It knows of each scheduler what its scripts rely on: how arrays are asked for and numbered, the variables that tell a
task its number, the limit of tasks, ids printed, and dependencies.
"""

from __future__ import annotations

import sys
from pathlib import Path

_SCRIPT = """#!{python}
import json, os, re, subprocess, sys
SCHEDULER, LIMIT, KILL, STATE = {scheduler!r}, {limit}, {kill!r}, {state!r}
words = sys.argv[1:]
after, script = [], words[-1]
for word in words[:-1]:
    after += [w for w in re.split("[:,]", word.split("=")[-1]) if w and not w.startswith(("after", "-", "depend"))]
text = open(script).read()
head = {{"slurm": "#SBATCH", "sge": "#$", "pbs": "#PBS"}}[SCHEDULER]
lines = [line[len(head):].strip() for line in text.splitlines() if line.startswith(head)]
found = None
for line in lines:
    match = re.match({{"slurm": r"--array=(\\d+)-(\\d+)(?:%(\\d+))?$", "sge": r"-t (\\d+)-(\\d+)$",
                      "pbs": r"-J (\\d+)-(\\d+)(?:%(\\d+))?$"}}[SCHEDULER], line)
    if match:
        found = int(match[1]), int(match[2])
if found and (found[1] - found[0] + 1 > LIMIT or (SCHEDULER == "slurm" and found[1] >= LIMIT)):
    sys.exit("sbatch: error: Batch job submission failed: Invalid job array specification")
if found and SCHEDULER == "pbs" and found[0] == found[1]:
    sys.exit("qsub: Bad array range")
name = {{"slurm": "job-name=", "sge": "N ", "pbs": "N "}}[SCHEDULER]
job = next((line.split(name)[-1] for line in lines if name in line), "job")
if SCHEDULER == "pbs" and len(job) > 15:
    sys.exit("qsub: illegal -N value")
done = [json.loads(line) for line in open(STATE)] if os.path.exists(STATE) else []
server = ("[].server" if found else ".server") if SCHEDULER == "pbs" else ""
identity = job if SCHEDULER == "sge" else str(100 + len(done)) + server
variable = {{"slurm": "SLURM_ARRAY_TASK_ID", "sge": "SGE_TASK_ID", "pbs": "PBS_ARRAY_INDEX"}}[SCHEDULER]
numbers = range(found[0], found[1] + 1) if found else [None]
codes = []
first = sum(record["tasks"] for record in done if "after" not in record)
for place, number in enumerate(numbers):
    env = dict(os.environ)
    env.pop(variable, None)
    if number is not None:
        env[variable] = str(number)
    elif SCHEDULER == "sge":
        env[variable] = "undefined"
    cwd = os.getcwd() if SCHEDULER != "pbs" else os.path.expanduser("~")
    process = subprocess.Popen(["bash", os.path.abspath(script)], env=env, cwd=cwd, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    if first + place in KILL and number is not None and not any(record.get("killed") for record in done):
        process.kill()
    codes.append(process.wait())
killed = any(code < 0 for code in codes)
kind = "array" if found else "single"
record = {{"kind": kind, "id": identity, "tasks": len(codes), "codes": codes, "killed": killed}}
if after:
    record["after"] = after
with open(STATE, "a") as file:
    file.write(json.dumps(record) + "\\n")
if SCHEDULER == "slurm":
    print(identity if "--parsable" in words else "Submitted batch job " + identity)
elif SCHEDULER == "sge":
    print("Your job-array " + identity)
else:
    print(identity)
"""


def install(folder: Path, scheduler: str, *, limit: int, kill: set[int]) -> tuple[Path, Path]:
    """Puts sbatch or qsub into a folder for PATH; returns it and the file that notes each job as a line of JSON.

    Tasks whose number over all arrays is in ``kill`` are killed as they start, until one was.
    """
    bin_folder, state = folder / "bin", folder / "jobs.jsonl"
    bin_folder.mkdir()
    program = bin_folder / ("sbatch" if scheduler == "slurm" else "qsub")
    program.write_text(
        _SCRIPT.format(python=sys.executable, scheduler=scheduler, limit=limit, kill=sorted(kill), state=str(state))
    )
    program.chmod(0o755)
    return bin_folder, state
