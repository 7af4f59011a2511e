"""Algorithm 1 for one example as plain loops: the reference of several tests."""

from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def merge_by_hand(keys, ranks, count):
    """Groups of input slots that stand at each output slot, target first; ``ranks`` lists input slots in order."""
    edges = []
    for rank in range(2, len(ranks), 2):
        similar = [(cosine(keys[ranks[rank]], keys[ranks[odd]]), odd) for odd in range(1, len(ranks), 2)]
        best, odd = max(similar, key=lambda edge: (edge[0], -edge[1]))
        edges.append((best, rank, odd))
    edges.sort(key=lambda edge: (-edge[0], edge[1]))
    into = {rank: odd for _, rank, odd in edges[:count]}
    stays = [rank for rank in range(len(ranks)) if rank not in into]
    return [[ranks[stay], *sorted(ranks[r] for r, odd in into.items() if odd == stay)] for stay in stays]


def decide_by_hand(step, text_keys, image_keys, rows):
    """Algorithm 1 for one example without padding: groups of text and of image slots.

    Args: keys ``(H, n, Dh)``; rows ``(H, T, V)``.
    """
    T, V = rows.shape[1:]
    saliency = [sum(float(rows[h, t, v]) for h in range(len(rows)) for t in range(T)) / T for v in range(V)]
    pruned = min(round(step.prune_ratio * V), V - 1)
    kept = sorted([0, *sorted(range(1, V), key=lambda v: (-saliency[v], v))[: V - pruned - 1]])
    if not step.prune_ratio:
        kept = list(range(V))
    image_merges = min(round(step.merge_ratio * V), (len(kept) - 1) // 2)
    text_merges = min(round(step.text_merge_ratio * T), (T - 1) // 2)
    text = merge_by_hand(text_keys.mean(dim=0), list(range(T)), text_merges)
    return text, merge_by_hand(image_keys.mean(dim=0), kept, image_merges)
