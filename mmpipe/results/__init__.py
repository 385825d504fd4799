"""Results of expensive functions, kept by what made them: the function's fingerprint and the content of its inputs."""

from mmpipe.results.cache import ResultCache, cache_limit, result_cache
from mmpipe.results.content import content_key, from_bytes, to_bytes

__all__ = ['ResultCache', 'cache_limit', 'content_key', 'from_bytes', 'result_cache', 'to_bytes']
