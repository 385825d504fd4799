"""What a fork server imports, once for all workers; each would take about half a second for it by itself."""

import numpy as np
import pyarrow as pa

import mmpipe.data.batch
import mmpipe.workers.worker  # noqa: F401

pa.array(np.zeros(1)).to_numpy()  # at its first conversion, pyarrow imports pandas where that is installed
