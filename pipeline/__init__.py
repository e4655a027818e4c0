"""One job from its input prefix to its uploaded result, with progress and cancellation. Knows no broker."""
