"""Images, sounds or volumes and their labels from anywhere, in one form: see :func:`load_data`."""

from models.data.errors import DataError
from models.data.images import ImageSplit, some_rows
from models.data.kinds import to_float, to_uint8
from models.data.load import ImageData, load_data
from models.data.loader import BatchLoader
from models.data.settings import DataConfig

__all__ = [
    "BatchLoader",
    "DataConfig",
    "DataError",
    "ImageData",
    "ImageSplit",
    "load_data",
    "some_rows",
    "to_float",
    "to_uint8",
]
