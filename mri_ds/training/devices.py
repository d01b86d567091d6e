"""What devices and their links can do: one table from data sheets, for the plan and for the share of peak that a run reaches.

Sources: NVIDIA's data sheets; rates of dense products without sparsity, float32 without TF32, which is off by default. Links are
per device and direction: NVLink 4, 3 and 2 where the row says SXM, PCI Express 5 or 4 for cards. The network is one card of 400
(H), 200 (A, L) or 50 Gbit/s (V) for each GPU, as in NVIDIA's DGX systems. Latencies, launches and `runtime` are round figures.
"""

from dataclasses import dataclass

SHARE = 0.5  # of the peak rate that products and convolutions reach, of bandwidth that the rest does


@dataclass(frozen=True)
class Device:
    """Rates in 1/s: floating-point operations, bytes. `runtime` is what libraries take of `memory`, beside tensors."""

    name: str
    memory: float
    bf16: float  # 0 where it has none
    fp16: float
    fp32: float
    bandwidth: float
    link: float  # to a rank of the same node
    network: float  # to a rank of another node
    latency_s: float  # of a message in a node
    network_latency_s: float
    launch_s: float  # of an operator, from Python
    runtime: float
    share: float = SHARE

    def flops(self, precision: str) -> float:
        """Of "bf16", "fp16" or "fp32", 1/s; 0 for what the device has not."""
        return {"bf16": self.bf16, "fp16": self.fp16, "fp32": self.fp32}[precision]


#                                   memory  bf16    fp16    fp32     bandwidth link    network  latencies   launch runtime
TABLE = {
    "h200": Device("h200", 141e9, 989e12, 989e12, 67e12, 4.80e12, 450e9, 50e9, 8e-6, 20e-6, 6e-6, 1.5e9),
    "h100": Device("h100", 80e9, 989e12, 989e12, 67e12, 3.35e12, 450e9, 50e9, 8e-6, 20e-6, 6e-6, 1.5e9),  # SXM5
    "h100-pcie": Device("h100-pcie", 80e9, 756e12, 756e12, 51e12, 2.00e12, 64e9, 50e9, 8e-6, 20e-6, 6e-6, 1.5e9),
    "a100": Device("a100", 80e9, 312e12, 312e12, 19.5e12, 2.04e12, 300e9, 25e9, 8e-6, 20e-6, 7e-6, 1.5e9),  # SXM4
    "l40s": Device("l40s", 48e9, 362e12, 362e12, 91.6e12, 864e9, 32e9, 25e9, 8e-6, 20e-6, 6e-6, 1.5e9),
    "v100": Device("v100", 32e9, 0, 125e12, 15.7e12, 900e9, 150e9, 6.25e9, 8e-6, 20e-6, 8e-6, 1e9),  # SXM2
}
DEVICES = [*TABLE, "cpu"]  # the last is this machine, measured: see plan/cpu.py


def known_as(driver_name: str) -> Device | None:
    """The row of what a driver calls "NVIDIA H100 80GB HBM3"; None for a device that the table has not.

    >>> known_as("NVIDIA H100 PCIe").name, known_as("Tesla V100-SXM2-32GB").name, known_as("NVIDIA A10")
    ('h100-pcie', 'v100', None)
    """
    words = driver_name.lower().replace("-", " ").split()
    rows = [row for row in TABLE.values() if all(part in words for part in row.name.split("-"))]
    return max(rows, key=lambda row: len(row.name), default=None)
