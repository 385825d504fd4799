"""Decoders: from the stored bytes of a medium to the array of a batch, on the CPU, in threads.

The contract (`mmpipe.decode.decoder.Decoder`) is small, and any object that keeps it decodes a `binary` field:

    mm.DataLoader(rows, batch_size=64, decode={'photo': mm.decode.image(size=224, crop='random')})

Nothing here imports torch or Pixeltable, so that a worker process starts quickly.
"""

from mmpipe.decode.decoder import Decoder, Decoding

__all__ = ['Decoder', 'Decoding']
