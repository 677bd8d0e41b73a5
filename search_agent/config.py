"""The configuration of a run, whole: what each key of ``configs/`` and of the command line means. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, cast

from search_agent.planning.rates import PredictionConfig
from search_agent.retrieval.config import ClientConfig
from verl.cluster.config import ClusterConfig
from verl.config.build import Plugin
from verl.errors import UserError, require
from verl.learner.config import LearnerConfig
from verl.rollout.config import RolloutConfig
from verl.tracking.config import TrackingConfig
from verl.trainer.config import EvaluationConfig, TrainerConfig, WarmupConfig

# Keys that change where or how a run is carried out, not what it computes: they do not make it another run.
NOT_RESULTS = ("run_dir", "fresh", "dry_run", "tracking", "prediction")


class Bounds(Protocol):
    """What every environment plug-in's ``Config`` says of its episodes; read before a run starts."""

    max_prompt_tokens: int
    """The longest prompt (tokens)."""
    max_policy_tokens: int
    """The most that the policy generates in an episode (tokens), the context apart."""
    max_episode_tokens: int
    """The longest episode (tokens), the context apart."""


@dataclass(frozen=True)
class RunConfig:
    """One training run; an evaluation of its model reads the same keys."""

    name: str
    """The recipe's name; with the hash of all other keys it makes the default run folder."""
    data: Plugin
    """Tasks, corpora and warm-up traces: ``preprocess.embedded.source``, ``search_agent.data.files``, or the like."""
    protocol: Plugin
    """ROLLOUT: tags, prompt and observation format, a module of ``search_agent.protocols``."""
    environment: Plugin
    """ROLLOUT: what an episode is (turns, tools, framing), ``search_agent.environment`` or the user's own."""
    reward: Plugin
    """SCORE: a module of ``search_agent.rewards``, or the user's own."""
    model: str = "embedded"
    """A Hugging Face folder or hub name; ``embedded`` is the tiny model made with the embedded data."""
    retriever: str = "embedded"
    """``embedded`` serves each split's corpus on this machine; ``none`` is for an environment whose tools search
    nothing; otherwise the URLs of retrieval servers, with commas."""
    expected_retriever: str | None = None
    """What a recipe's figures were made with, as ``/info`` names it: a back end (``bm25``, ``dense``) or the family of
    an encoder (``e5``). Servers that say they are something else are refused. null: whatever is served."""
    seed: int = 0
    """Every draw of the run derives from it: the embedded data, initial weights, task order, each sampled token. 0 to
    2**63 - 1, which is what every generator takes."""
    run_dir: str | None = None
    """The run's folder; null makes it ``runs/<name>-<hash of the configuration>``, so a repeated command resumes."""
    fresh: bool = False
    """Delete what stands in the run folder and start anew, instead of resuming."""
    deterministic: bool = False
    """Admit requests to the engine in a fixed order, so that a resumed run on CPUs repeats every token; costs rollout
    speed. On GPUs the learner also takes kernels with a fixed order of sums where torch has them (attention's backward
    pass and sums by index take longer, how much was not measured), and a repeat is not promised."""
    dry_run: bool = False
    """Print every key, the plan and what forbids it, and stop."""
    client: ClientConfig = field(default_factory=ClientConfig)
    """How rollout workers talk to the retriever."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Rollout workers and their engines."""
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    """Supervised warm-up on recorded traces."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """The reinforcement loop, ASSIGN and LOSS."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    """How a batch becomes optimizer steps."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is measured, and how the best checkpoint is chosen."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Processes, threads and GPUs."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where metrics go, besides the run folder."""
    prediction: PredictionConfig = field(default_factory=PredictionConfig)
    """What ``dry_run=true`` needs to say how long a run takes and what it costs."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", self.seed, "write 0 to 2**63 - 1")
        if self.client.urls != ClientConfig().urls:
            raise UserError("client.urls says nothing beside retriever: write retriever=http://HOST:PORT")
        shown = getattr(self.environment.config, "top_k", None)
        named = getattr(self.protocol.config, "named_passages", None)
        if shown != named and shown is not None and named is not None:
            raise UserError(
                f"environment.top_k={shown}, and the protocol's prompt promises {named} passages: write the same "
                "number in protocol.passages"
            )
        context = self.rollout.engine.max_context_tokens
        room = self.learner.longest_sequence
        if context > room:
            raise UserError(
                f"rollout.engine.max_context_tokens is {context}, above learner.max_tokens_per_microbatch x "
                f"learner.sequence_ranks ({room}): an episode may not fit a micro-batch; raise one of the latter"
            )
        heads = self.learner.head_dtype, self.rollout.engine.head_dtype
        if len(set(heads)) > 1:
            raise UserError(
                f"learner.head_dtype={heads[0]} and rollout.engine.head_dtype={heads[1]}: the two sides would round "
                "differently; write the same in both"
            )
        if self.deterministic and self.trainer.max_staleness:
            raise UserError(
                f"deterministic=true needs trainer.max_staleness=0, not {self.trainer.max_staleness}: "
                "an asynchronous run depends on timing"
            )
        if self.trainer.max_staleness and self.rollout.top_p < 1:
            raise UserError(
                f"trainer.max_staleness={self.trainer.max_staleness} with rollout.top_p={self.rollout.top_p}: the "
                "sampled distribution is cut and the trainer's is not, so importance ratios say nothing; write "
                "rollout.top_p=1"
            )
        self._check_algorithm()

    @property
    def bounds(self) -> Bounds:
        """What the environment says of its episodes."""
        return cast(Bounds, self.environment.config)

    @property
    def retriever_urls(self) -> tuple[str, ...]:
        """Addresses of servers that others run; none with ``retriever=embedded`` or ``none``."""
        return () if self.retriever in ("embedded", "none") else tuple(url.strip() for url in self.retriever.split(","))

    @property
    def max_policy_tokens(self) -> int:
        """The most tokens that an episode may generate, within the context."""
        return min(self.bounds.max_policy_tokens, self.rollout.engine.max_context_tokens)

    def _check_algorithm(self) -> None:
        """Refuse what would give no signal, or needs what the loop does not have."""
        trainer = self.trainer
        if not (self.trainer.steps or self.warmup.enabled):
            raise UserError("trainer.steps=0 without a warm-up trains nothing: write warmup.steps or warmup.epochs")
        if self.warmup.all_weights and self.learner.lora is None:
            raise UserError("warmup.all_weights=true says something beside learner.lora only: write false")
        name, limit = trainer.advantage.name, self.max_policy_tokens
        dropping = "dynamic_sampling.enabled" if trainer.dynamic_sampling.enabled else "drop_uniform_groups"
        if trainer.drops_uniform and not trainer.advantage.needs_group:
            raise UserError(
                f"trainer.{dropping}=true: with trainer.advantage.name={name} a group whose rewards are all equal has "
                "something to say; write false"
            )
        if trainer.advantage.needs_gold:
            self._check_gold()
        if trainer.turn_credit.coefficient and trainer.advantage.needs_critic:
            raise UserError(
                "trainer.turn_credit.coefficient above 0 compares the samples of a task, and "
                f"trainer.advantage.name={name} has a critic instead: write 0, or another advantage"
            )
        if trainer.overlong.buffer_tokens > limit:
            raise UserError(
                f"trainer.overlong.buffer_tokens={trainer.overlong.buffer_tokens} is above the {limit} tokens that an "
                "episode may generate by its environment's bounds and its context: lower it"
            )
        try:
            trainer.advantage.check_group_size(trainer.samples_per_prompt)
            trainer.loss.check_effect(self.learner.updates_per_batch, trainer.max_staleness)
        except UserError as error:
            raise UserError(f"trainer.{error}") from error

    def _check_gold(self) -> None:
        """Refuse what says nothing where accepted answers are trained on, and nobody's rewards are compared."""
        trainer = self.trainer
        inert = {
            "kl_reward.coefficient": trainer.kl_reward.coefficient,
            "overlong.buffer_tokens": trainer.overlong.buffer_tokens,
            "turn_credit.coefficient": trainer.turn_credit.coefficient,
            "budget.price": trainer.budget.price,
            "budget.rate": trainer.budget.rate,
        }
        for key, value in inert.items():
            if value:
                raise UserError(f"trainer.{key}={value} says nothing with trainer.advantage.name=softmax: write 0")
        if trainer.loss_in_force.needs_rollout:
            raise UserError(
                "trainer.loss compares with what the engine said of its tokens, and with trainer.advantage.name="
                "softmax the answer is nobody's: write trainer.loss.correction.mode=none, and no guard or mask that "
                "reads it"
            )
