"""Fast weight programmers for fairseq and PyTorch.

``import fairseq_fwm`` works with torch alone and offers :mod:`fairseq_fwm.nn`,
:mod:`fairseq_fwm.ops`, :mod:`fairseq_fwm.feature_maps` and :mod:`fairseq_fwm.mixers`. Where
fairseq is installed it also registers the models with fairseq, which is all that ``--user-dir``
needs.
"""

import logging

from fairseq_fwm import feature_maps, mixers, nn, ops
from fairseq_fwm._safe_globals import allow_broadcasts, allow_checkpoint_contents
from fairseq_fwm.kernels_status import kernels_status

__version__ = "0.1.0"
__all__ = ["feature_maps", "kernels_status", "mixers", "nn", "ops"]

allow_checkpoint_contents()

try:
    import fairseq  # noqa: F401
except ImportError:
    pass  # torch alone: ops, feature maps and mixers work
except Exception as error:  # fairseq 0.12.2 on Python >= 3.11 raises ValueError, for one
    logging.getLogger(__name__).warning(
        "fairseq is installed but cannot be imported (%s); 'python -m fairseq_fwm.doctor' tells "
        "the cure",
        error,
    )
else:
    allow_broadcasts()
    # fairseq imports only tasks/ and models/ of a user directory, and nothing at all if the
    # package was imported before: everything that registers itself is imported here.
    from fairseq_fwm.criterions import squared_error, tagging  # noqa: F401
    from fairseq_fwm.models import (  # noqa: F401
        associative_memory,
        fwm_transformer,
        fwm_transformer_lm,
        sequence_tagger,
        transformer_xl_lm,
    )
    from fairseq_fwm.optim import until_solved  # noqa: F401
    from fairseq_fwm.tasks import (  # noqa: F401
        associative_retrieval,
        formal_language,
        streaming_language_modeling,
    )
