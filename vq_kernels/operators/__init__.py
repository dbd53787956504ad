"""The operators ``vq_kernels::*``, one a file: schema, rows, fake and autograd Function together.

Each file ends in typed functions, so that a search or a type checker follows a tensor from the public
function to the kernel. Arguments arrive validated (``functional.py``); what a backend gets is written in
``backends/base.py``.
"""
