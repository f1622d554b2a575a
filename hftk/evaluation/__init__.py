"""Loss, logits or generation on a split -> scores, predictions, analysis."""
