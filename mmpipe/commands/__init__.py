"""The commands of `mmpipe`, by what they are about; `mmpipe.cli` runs them."""
