"""A federation in one process, for tests and small experiments: apps are Flower's own, only the wire is not there.

    strategy ── Grid.send_and_receive ──► InProcessGrid ── calls ──► ClientApp(message, context of the node)

Nodes are asked one after another. What a real wire does to a message is done here too: nobody shares an object with
anybody else, and a client that raises is a reply with an error.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmpipe.errors import ConfigError
from mmpipe.federated.engine import check_flower
from mmpipe.federated.exchange import refusal
from mmpipe.federated.server import RUN
from mmpipe.runs import Run, open_run
from mmpipe.wording import how_many

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp

Listener = Callable[['Message'], None]
LOOKS = 10
"""So often may nodes be counted with nothing sent in between. Flower waits for more of them, and here none can come."""


def simulate(
    server: ServerApp,
    clients: ClientApp | Sequence[ClientApp],
    roots: Sequence[str | os.PathLike[str]],
    *,
    run_config: Mapping[str, Any] | None = None,
    listen: Listener | None = None,
) -> Run:
    """Run a federation in this process.

    Args:
        server: of `mm.federated.server_app`.
        clients: the app of all, or one app per root.
        roots: of the snapshots of each client; its `node_config['root']`.
        run_config: Flower's, such as `{'num-server-rounds': 5}`.
        listen: is given every message, of the server and of clients.

    Returns:
        The server's run.

    Raises:
        ConfigError: apps and roots that do not go together, a strategy that waits for more clients than there are, or
            another version of Flower than this is written for.
        MissingExtraError: Flower is not installed.
        TrainError: no training of clients arrived in any round.

    >>> import tempfile
    >>> import mmpipe as mm
    >>> from flwr.serverapp.strategy import FedAvg
    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.train.example import example_model
    >>> def batches(snapshot, split):
    ...     return mm.DataLoader(snapshot.split('train'), batch_size=2, device='cpu')
    >>> folder, roots = tempfile.mkdtemp(), [example_rows().snapshot.root for _ in range(2)]
    >>> client = mm.federated.client_app(
    ...     example_model, batches, trainer=mm.Trainer(runs=folder), metrics=['kind.accuracy']
    ... )
    >>> server = mm.federated.server_app(FedAvg(), example_model, rounds=2, runs=folder)
    >>> run = simulate(server, client, roots)
    >>> run.id, run.status, list(run.metrics['kind'])
    ('federated/0001', 'finished', ['accuracy'])
    """
    check_flower('mm.federated.simulate', private=True)
    from flwr.app import Context, RecordDict

    apps = list(clients) if isinstance(clients, Sequence) else [clients] * len(roots)
    if len(apps) != len(roots) or not roots:
        raise ConfigError(f'simulate: {len(apps)} client apps for {len(roots)} roots; one each is meant.')
    grid = in_process_grid(apps, [str(root) for root in roots], run_config=run_config, listen=listen)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(run_config or {}))
    server(grid, context)
    return open_run(str(context.state[RUN]['path']))


def in_process_grid(
    apps: Sequence[ClientApp],
    roots: Sequence[str],
    *,
    run_config: Mapping[str, Any] | None = None,
    listen: Listener | None = None,
) -> Grid:
    """The grid under `simulate`, for a server app or strategy that you run yourself.

    Args:
        apps: one per node.
        roots: one per node.
        run_config: of every node's context.
        listen: is given every message.

    Returns:
        A Flower grid, with `away`, a set of node ids that are not reached, to try what a strategy makes of that. Ids
        count from 2; 1 is the server.

    Raises:
        ConfigError: another version of Flower than this is written for.

    >>> sorted(in_process_grid([None, None], ['a', 'b']).get_node_ids())
    [2, 3]
    """
    check_flower('mm.federated.in_process_grid', private=True)
    from flwr.app import Context, Error, Message, RecordDict
    from flwr.common.constant import ErrorCode
    from flwr.serverapp import Grid
    from flwr.supercore.run import Run as FlowerRun
    from flwr.supercore.task_identity import TaskIdentity

    # Messages ask this process who it is; not public, hence the guard by version.
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

    class InProcessGrid(Grid):
        """Calls client apps where others send."""

        def __init__(self) -> None:
            self.away: set[int] = set()
            self._apps = dict(enumerate(apps, start=2))
            self._contexts = {
                node: Context(
                    run_id=1,
                    node_id=node,
                    node_config={'root': root, 'partition-id': node - 2, 'num-partitions': len(roots)},
                    state=RecordDict(),
                    run_config=dict(run_config or {}),
                )
                for node, root in enumerate(roots, start=2)
            }
            self._replies: dict[str, Message] = {}
            self._sent = 0
            self._looks = 0

        def set_run(self, run: FlowerRun) -> None:
            """There is one run here."""

        @property
        def run(self) -> FlowerRun:
            return FlowerRun.create_empty(1)

        def create_message(
            self, content: Any, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
        ) -> Message:
            return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

        def get_node_ids(self) -> Iterable[int]:
            found = [node for node in self._apps if node not in self.away]
            self._looks += 1
            if self._looks > LOOKS:
                raise ConfigError(
                    f'The strategy waits for more than the {how_many(len(found), "node")} here, and no other will '
                    f'come. Simulate more roots, or give it min_available_nodes={len(found)}, and min_train_nodes and '
                    f'min_evaluate_nodes that are not more.'
                )
            return found

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            ids = []
            self._looks = 0
            for message in messages:
                self._sent += 1
                ids.append(str(self._sent))
                message.metadata.__dict__['_message_id'] = ids[-1]
                self._replies[ids[-1]] = self._ask(message)
            return ids

        def _ask(self, message: Message) -> Message:
            # Flower makes one content for all clients; each gets its own, as over a wire.
            content, about = copy.deepcopy(message.content), copy.copy(message.metadata)
            asked = Message(content=content, metadata=about)  # type: ignore[call-overload]
            node = asked.metadata.dst_node_id
            if listen is not None:
                listen(asked)
            if node in self.away:
                error = Error(code=ErrorCode.NODE_UNAVAILABLE, reason='this node is away')
                return Message(error, reply_to=asked)
            try:
                reply = self._apps[node](asked, self._contexts[node])
            except Exception as error:  # noqa: BLE001  an app of somebody else's; over a wire it is a reply, too
                reply = refusal(error, asked)
            if listen is not None:
                listen(reply)
            return reply

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return [self._replies.pop(each) for each in message_ids if each in self._replies]

        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            return self.pull_messages(self.push_messages(messages))

    return InProcessGrid()
