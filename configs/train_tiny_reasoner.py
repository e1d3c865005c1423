"""How the embedded model "tiny-reasoner" was made; 55 minutes on two busy CPU cores."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Every value can be overridden: --config.steps=100 --config.model.num_layers=2."""
    config = ml_collections.ConfigDict()
    config.seed = 0

    # The model; its vocabulary is the tokenizer's, which has at most vocab_size ids.
    config.model = ml_collections.ConfigDict(
        {
            "hidden_size": 128,
            "num_layers": 4,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 32,
            "mlp_size": 384,
            "max_positions": 1024,
        }
    )
    config.vocab_size = 640
    config.tokenizer_problems = 20_000

    # Data: examples longer than max_tokens are left out.
    config.batch_size = 16
    config.max_tokens = 448
    config.pool_batches = 64
    config.valid_examples = 256

    # Optimisation. The parameters are float32; compute_dtype is what the forward pass sees.
    config.steps = 6_000
    config.learning_rate = 2.5e-3
    config.warmup_steps = config.get_ref("steps") // 30  # follows steps, unless it is given
    config.final_share = 0.02
    config.weight_decay = 0.1
    config.b2 = 0.98
    config.clip_norm = 1.0
    config.compute_dtype = "float32"

    # These may change between a run and its continuation.
    config.log_every = 50
    config.valid_every = 1_000
    config.checkpoint_every = 1_000
    config.export_dir = ""  # where the finished model goes as well; WORKDIR/export always has it
    return config
