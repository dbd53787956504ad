"""Benchmarks: this library against its peers, and both against the machine's own limits.

``METHOD.md`` says how things are measured; ``python -m benchmarks`` (``make bench``) prints the table.
Only the public interface of ``vq_kernels`` is used (but by ``tune``, which sets the Triton search's tile
sizes), and nothing of the library imports this package.
"""
