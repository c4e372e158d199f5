"""Several machines for one run: each runs the same command, they meet at the first one, and only that one writes.

Every machine must see the run's folder and the data under the same path. Torch's elastic launcher brings the processes
together, a new group for each stage.
"""

import os
import shutil
import subprocess
from typing import Any

from engine.compose import Plan

FIRST_PORT, PORTS = 20000, 20000  # a SLURM job takes the port that its number says, so that two on a machine differ
PATIENCE = 900  # seconds that machines wait for each other at the start of a stage


def meet(plan: Plan) -> None:
    """Settle where the machines of a plan meet; nothing for a run on one machine.

    Raises:
        ValueError: Several machines have no folder in common, no meeting point, or more numbers than there are.
    """
    cluster, nodes = plan["cluster"], _nodes(plan)
    if nodes == 1:
        cluster["node"] = 0  # a SLURM job of one machine may be the second of an allocation
        return
    if not 0 <= cluster["node"] < nodes:
        raise ValueError(f"cluster.node={cluster['node']}: the machines of trainer.num_nodes={nodes} count from 0")
    cluster["rendezvous"] = cluster["rendezvous"] or first_host()
    if not cluster["rendezvous"]:
        raise ValueError(
            f"trainer.num_nodes={nodes} outside SLURM needs cluster.rendezvous=HOST:PORT, the first machine's, and "
            "cluster.node=0, 1 ... on each"
        )
    if not (plan["folder"] or plan["resume"] or os.environ.get("SUBMITIT_EXECUTOR")):
        raise ValueError(f"trainer.num_nodes={nodes} needs folder=PATH, the same on every machine")


def _nodes(plan: Plan) -> int:
    return max(int(stage["trainer"].get("num_nodes", 1)) for stage in plan["stages"].values())


def first_host() -> str | None:
    """The first machine of this SLURM job with a port of the job's own; None outside SLURM."""
    listed = os.environ.get("SLURM_JOB_NODELIST")
    if not listed or not shutil.which("scontrol"):
        return None
    names = subprocess.check_output(["scontrol", "show", "hostnames", listed], text=True).split()
    return f"{names[0]}:{FIRST_PORT + int(os.environ.get('SLURM_JOB_ID', 0)) % PORTS}"


def meeting_point(spec: dict[str, Any]) -> dict[str, Any]:
    """What the elastic launcher must know of where ranks meet: a free port here, or that of the first machine."""
    cluster = spec.get("cluster") or {}
    if not cluster.get("rendezvous"):
        return {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    return {
        "rdzv_backend": "c10d",
        "rdzv_endpoint": cluster["rendezvous"],
        "rdzv_configs": {"is_host": cluster["node"] == 0, "join_timeout": PATIENCE},
    }
