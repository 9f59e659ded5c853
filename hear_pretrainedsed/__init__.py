"""Every published sound-event-detection backbone as a plugin of the HEAR benchmark.

The package itself follows HEAR's API (`load_model`, `get_timestamp_embeddings`,
`get_scene_embeddings`), and so does one module per checkpoint, for example
`hear_pretrainedsed.beats_strong`.
"""

__version__ = "0.1.0"

from hear_pretrainedsed.api import (
    add_hear_modules,
    detect,
    get_scene_embeddings,
    get_timestamp_embeddings,
    load_model,
)
from hear_pretrainedsed.events import Event
from hear_pretrainedsed.registry import list_checkpoints
from hear_pretrainedsed.user_registry import add_imported

__all__ = [
    "Event",
    "detect",
    "get_scene_embeddings",
    "get_timestamp_embeddings",
    "list_checkpoints",
    "load_model",
]

add_imported()
add_hear_modules(__name__)
