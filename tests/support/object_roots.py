"""What tests do to a snapshot root on an object store behind mmpipe's back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import fsspec


def _system(url):
    system, path = fsspec.url_to_fs(url, use_listings_cache=False)
    return system, path.rstrip('/')


def there(url):
    """Names of all objects below a root."""
    system, path = _system(url)
    return {name[len(path) + 1 :] for name in system.find(path)}


def get(url, name):
    system, path = _system(url)
    return system.cat_file(f'{path}/{name}')


def put(url, name, data):
    system, path = _system(url)
    system.pipe_file(f'{path}/{name}', data)


def delete(url, name):
    system, path = _system(url)
    system.rm_file(f'{path}/{name}')


def age(url, seconds=7200):
    """Make every object of a root older than it is."""
    system, path = _system(url)
    before = datetime.now(UTC) - timedelta(seconds=seconds)
    if url.startswith('memory:'):
        for name, file in system.store.items():
            if name.startswith(f'{path}/'):
                file.created = file.modified = before
        return
    from moto.s3.models import s3_backends

    bucket, _, prefix = path.partition('/')
    for account in s3_backends.values():
        for backend in account.values():
            for name, key in backend.buckets[bucket].keys.items() if bucket in backend.buckets else ():
                if name.startswith(f'{prefix}/'):
                    key.last_modified = before.replace(tzinfo=None)


def pointers(url):
    """Number to (snapshot id, token) of every move of the pointer."""
    found = {int(name.partition('/')[2]): get(url, name).decode().split() for name in there(url) if 'latest/' in name}
    assert found.pop(0, ['mmpipe']) == ['mmpipe']
    return {number: tuple(found[number]) for number in sorted(found)}
