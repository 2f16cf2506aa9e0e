"""Tells the tests what a running WebUI holds. No extension for users.

GET /asag-probe/memory: `resident`, the process's memory in bytes; `tensors` and `objects`, how many Python's garbage
collector knows of; `seconds`, the processor time that the process has taken.
"""

import ctypes
import gc
import sys
import time

import psutil
import torch
from modules import script_callbacks


def memory():
    gc.collect()
    objects = gc.get_objects()
    if sys.platform == "linux":
        # What was freed and is kept to be given out again is nobody's.
        ctypes.CDLL(None).malloc_trim(0)
    return {
        "resident": psutil.Process().memory_info().rss,
        # isinstance would ask proxies for their class.
        "tensors": sum(issubclass(type(each), torch.Tensor) for each in objects),
        "objects": len(objects),
        "seconds": time.process_time(),
    }


script_callbacks.on_app_started(lambda _, app: app.get("/asag-probe/memory")(memory))
