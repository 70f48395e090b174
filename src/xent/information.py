"""Information theory of discrete distributions. Arguments are probabilities; for logits see `xent.numpy`, `xent.torch`.

    information content   I(x)     = -log P(x)
    entropy               H(p)     = E_p[-log p]
    cross-entropy         H(p, q)  = E_p[-log q]            = H(p) + KL(p || q)
    KL divergence         KL(p||q) = E_p[log p - log q]

Every function takes any array of the array API standard (NumPy, torch, JAX, CuPy; lists become NumPy arrays) and
returns the same kind, differentiable if the array is. NumPy arrays may have any byte order and strides; results are
plain arrays in the machine's byte order. longdouble is computed in longdouble, 16 and 8 bits in float32. Masked arrays
with masked entries and sparse matrices raise `DTypeError`. Distributions lie along `axis`; the other axes broadcast.
`base` sets the unit: e for nats, 2 for bits, 10 for hartleys (bans). In expectations `0 log 0 = 0`; an event with q = 0
and p > 0 costs `+inf`. Nothing is renormalised or clipped: a vector that is not a distribution raises
`DistributionError`. `check=False` skips that test, for code that is being traced (`jax.jit`, `torch.compile`).
"""

from __future__ import annotations

import math
from typing import Any

import array_api_compat

from xent.arrays import (
    Array,
    as_arrays,
    as_distributions,
    as_labels,
    as_probabilities,
    check_classes,
    check_classes_axis,
)
from xent.errors import ArgumentError, DTypeError, message
from xent.terms import (
    cross_terms,
    divergence_terms,
    exp_below_maximum,
    full_like,
    logarithm,
    mixture_divergence_terms,
    nats_per_unit,
    where_positive,
)

__all__ = [
    "binary_entropy",
    "cross_entropy",
    "entropy",
    "information_content",
    "js_divergence",
    "kl_divergence",
    "log_softmax",
    "one_hot",
    "perplexity",
    "softmax",
]


def information_content(p: Array, *, base: float = math.e, impossible: float = math.inf, check: bool = True) -> Array:
    """Information content of events with probability p: the surprisal, self-information.

    *Definition*: ``I(p) = -log p``. A certain event carries no information, less likely events carry more, and the
    information of independent events adds, since their probabilities multiply.

    Parameters
    ----------
    p : array of any shape, values in [0, 1]
    base : the base of the logarithm: e for nats, 2 for bits.
    impossible : the information of an event with p = 0: +inf, or 0 as in an expectation (``0 log 0 = 0``).
    check : False skips the test that the values are probabilities.

    Returns
    -------
    array of p's shape and dtype, in nats (bits for ``base=2``), 0 or more.

    Raises
    ------
    DistributionError
        A value is NaN or outside [0, 1].
    ArgumentError
        The base is not a positive number other than 1, or `impossible` is not a number.

    Notes
    -----
    *Numerics*: one logarithm, correct to its rounding (below 2 ulp), subnormal p included.

    Examples
    --------
    >>> information_content([1.0, 0.5, 0.25], base=2)
    array([0., 1., 2.])
    >>> float(information_content(0.0))
    inf

    References
    ----------
    Shannon (1948), A Mathematical Theory of Communication, doi:10.1002/j.1538-7305.1948.tb01338.x
    """
    try:
        impossible = float(impossible)
    except (TypeError, ValueError):
        problem = f"found {impossible!r}, expected a number"
        raise ArgumentError(message("information_content", "impossible", problem, "Pass math.inf or 0.0")) from None
    xp, p = as_probabilities("information_content", check, p=p)
    # Adding 0.0 turns -log(1) = -0.0 into 0.0.
    information = -logarithm(xp, where_positive(xp, p), base) + 0.0
    return xp.where(p > 0, information, full_like(xp, p, impossible) + 0.0 * p)


def entropy(p: Array, *, axis: int = -1, base: float = math.e, check: bool = True) -> Array:
    """Entropy of p: Shannon entropy, the expected information content.

    *Definition*: ``H(p) = -sum(p * log p)`` with ``0 log 0 = 0``. Between 0 (one-hot) and log C (uniform).

    Parameters
    ----------
    p : array (..., C, ...), distributions along `axis`
    axis, base, check : see the module docstring.

    Returns
    -------
    array of p's shape without `axis`, p's dtype, in nats (bits for ``base=2``).

    Raises
    ------
    DistributionError
        A distribution has a negative or NaN entry, or does not sum to 1.

    Notes
    -----
    *Numerics*: no term is negative, so the relative error is that of a sum of C rounded terms. The gradient at
    p = 0, which is infinite, is returned as 0.

    Examples
    --------
    >>> float(entropy([0.5, 0.25, 0.25], base=2))
    1.5
    >>> float(entropy([0.0, 1.0, 0.0]))
    0.0

    References
    ----------
    Cover and Thomas (2006), Elements of Information Theory, section 2.1
    """
    xp, (p,) = as_distributions("entropy", axis, check, p=p)
    return xp.sum(-p * logarithm(xp, where_positive(xp, p), base) + 0.0, axis=axis)


def binary_entropy(p: Array, *, base: float = math.e, check: bool = True) -> Array:
    """Binary entropy: the entropy of an event with probability p and its opposite, of a Bernoulli variable.

    *Definition*: ``H(p) = -p * log(p) - (1 - p) * log(1 - p)`` with ``0 log 0 = 0``. Between 0 and log 2 (1 bit).

    Parameters
    ----------
    p : array of any shape, values in [0, 1]
    base : the base of the logarithm: e for nats, 2 for bits.
    check : False skips the test that the values are probabilities.

    Returns
    -------
    array of p's shape and dtype, in nats (bits for ``base=2``).

    Raises
    ------
    DistributionError
        A value is NaN or outside [0, 1].
    ArgumentError
        The base is not a positive number other than 1.

    Notes
    -----
    *Numerics*: neither term is negative, and ``log(1 - p)`` is that of log1p, so that small p keep their digits. The
    gradient at 0 and 1, which is infinite, is returned as 0.

    Examples
    --------
    >>> binary_entropy([0.0, 0.5, 1.0], base=2)
    array([0., 1., 0.])

    References
    ----------
    Shannon (1948), A Mathematical Theory of Communication, doi:10.1002/j.1538-7305.1948.tb01338.x
    """
    xp, p = as_probabilities("binary_entropy", check, p=p)
    one, half = full_like(xp, p, 1.0), full_like(xp, p, 0.5)
    inside = (p > 0) & (p < 1)
    some = xp.where(inside, p, half)
    nats = -some * xp.log(some) - (one - some) * xp.log1p(-some)
    terms = nats / nats_per_unit(xp, p, base)
    # Beyond 1 a probability is 1 up to rounding; a NaN, which only check=False lets in, stays.
    return xp.where(inside, terms, full_like(xp, p, 0.0) * p)


def cross_entropy(p: Array, q: Array, *, axis: int = -1, base: float = math.e, check: bool = True) -> Array:
    """Cross-entropy of q relative to p: the expected information content under q of events drawn from p.

    *Definition*: ``H(p, q) = -sum(p * log q) = H(p) + KL(p || q)``. For a one-hot p it is the negative
    log-likelihood of the label, ``-log q[label]``. Its minimum over q is H(p), at q = p.

    Parameters
    ----------
    p : array (..., C, ...), the true distributions along `axis`
    q : array that broadcasts with p, the predicted distributions along `axis`
    axis, base, check : see the module docstring.

    Returns
    -------
    array of the broadcast shape without `axis`, in nats (bits for ``base=2``). +inf where q = 0 and p > 0.

    Raises
    ------
    DistributionError
        A distribution has a negative or NaN entry, or does not sum to 1.
    ShapeError
        The shapes do not broadcast, or differ along `axis`.

    Notes
    -----
    *Numerics*: no term is negative, so the relative error is that of a sum of C rounded terms. Classes with p = 0 add
    exactly 0.

    Examples
    --------
    The label is the last of three classes and the prediction gives it 0.2:

    >>> round(float(cross_entropy([0, 0, 1.0], [0.6, 0.2, 0.2])), 4)
    1.6094
    >>> float(cross_entropy([0.5, 0.5], [1.0, 0.0]))
    inf

    References
    ----------
    Good (1952), Rational Decisions; Cover and Thomas (2006), theorem 5.4.3
    """
    xp, (p, q) = as_distributions("cross_entropy", axis, check, p=p, q=q)
    return xp.sum(cross_terms(xp, p, q, base), axis=axis)


def kl_divergence(p: Array, q: Array, *, axis: int = -1, base: float = math.e, check: bool = True) -> Array:
    """Kullback-Leibler divergence of p from q: relative entropy, information gain.

    *Definition*: ``KL(p || q) = sum(p * log(p / q)) = H(p, q) - H(p)``. It is 0 only for p = q, positive otherwise,
    and not symmetric. It is computed as ``sum(p * log(p / q) - p + q)``, which is the same number when both sum to 1.

    Parameters
    ----------
    p : array (..., C, ...), the true distributions along `axis`
    q : array that broadcasts with p, the predicted distributions along `axis`
    axis, base, check : see the module docstring.

    Returns
    -------
    array of the broadcast shape without `axis`, 0 or more, in nats (bits for ``base=2``). +inf where q = 0 and p > 0.

    Raises
    ------
    DistributionError
        A distribution has a negative or NaN entry, or does not sum to 1.
    ShapeError
        The shapes do not broadcast, or differ along `axis`.

    Notes
    -----
    *Numerics*: the textbook sum cancels when p is near q and can become negative. Each term here is 0 or more and is
    computed without cancellation (a series in ``(q - p) / (q + p)`` near equality), so the result keeps full relative
    accuracy down to the smallest divergences.

    Examples
    --------
    >>> round(float(kl_divergence([0.5, 0.5], [0.9, 0.1])), 4), round(float(kl_divergence([0.9, 0.1], [0.5, 0.5])), 4)
    (0.5108, 0.3681)

    References
    ----------
    Kullback and Leibler (1951), On Information and Sufficiency, doi:10.1214/aoms/1177729694
    """
    xp, (p, q) = as_distributions("kl_divergence", axis, check, p=p, q=q)
    return xp.sum(divergence_terms(xp, p, q), axis=axis) / nats_per_unit(xp, p, base)


def js_divergence(p: Array, q: Array, *, axis: int = -1, base: float = math.e, check: bool = True) -> Array:
    """Jensen-Shannon divergence of p and q: a symmetric and always finite variant of the KL divergence.

    *Definition*: ``JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2`` with ``m = (p + q) / 2``; between 0 and log 2.
    Parameters, shapes and errors are those of `kl_divergence`.

    Notes
    -----
    *Numerics*: as for the KL divergence. The mixture is never formed: a term depends on p + q and (q - p) / (p + q), so
    nothing cancels near p = q, and halving the smallest subnormal does not make an event impossible.

    Examples
    --------
    >>> float(js_divergence([1.0, 0.0], [0.0, 1.0], base=2))
    1.0

    References
    ----------
    Lin (1991), Divergence Measures Based on the Shannon Entropy, doi:10.1109/18.61115
    """
    xp, (p, q) = as_distributions("js_divergence", axis, check, p=p, q=q)
    return xp.sum(mixture_divergence_terms(xp, p, q), axis=axis) / (4 * nats_per_unit(xp, p, base))


def perplexity(p: Array, q: Array | None = None, *, axis: int = -1, check: bool = True) -> Array:
    """Perplexity: the number of equally likely classes that would be as uncertain.

    *Definition*: ``exp(H(p))``, or ``exp(H(p, q))`` with a prediction q. The unit of the entropy cancels, so there is
    no base. Between 1 and C for one argument, between 1 and +inf for two.

    Parameters
    ----------
    p : array (..., C, ...), distributions along `axis`
    q : array that broadcasts with p, optional
    axis, check : see the module docstring.

    Returns
    -------
    array of the (broadcast) shape without `axis`; a count of classes, no unit.

    Raises
    ------
    DistributionError
        A distribution has a negative or NaN entry, or does not sum to 1.
    ShapeError
        The shapes do not broadcast, or differ along `axis`.

    Notes
    -----
    *Numerics*: the absolute error of the entropy becomes a relative error. For many rows take the exponential of the
    mean, not the mean of the perplexities.

    Examples
    --------
    >>> round(float(perplexity([0.25, 0.25, 0.25, 0.25])), 12)
    4.0

    References
    ----------
    Jelinek et al. (1977), Perplexity, a measure of the difficulty of speech recognition tasks, doi:10.1121/1.2016299
    """
    if q is None:
        xp, (p,) = as_distributions("perplexity", axis, check, p=p)
        return xp.exp(entropy(p, axis=axis, check=False))
    xp, (p, q) = as_distributions("perplexity", axis, check, p=p, q=q)
    return xp.exp(cross_entropy(p, q, axis=axis, check=False))


def softmax(logits: Array, *, axis: int = -1) -> Array:
    """Softmax of logits: the normalised exponential. It and `log_softmax` take logits, not probabilities.

    *Definition*: ``softmax(x)[j] = exp(x[j]) / sum(exp(x))``. Adding a constant to the logits changes nothing.

    Parameters
    ----------
    logits : array (..., C, ...), real numbers along `axis`; minus infinity masks a class.
    axis : the axis of the classes.

    Returns
    -------
    array of the same shape and dtype: distributions along `axis`. A row that has NaN or +inf, or only -inf, is NaN.

    Raises
    ------
    DTypeError
        The array does not hold real numbers.
    ShapeError
        The array has no such axis, or no classes along it.

    Notes
    -----
    *Numerics*: the maximum is subtracted first, so nothing overflows, and the rounding error of the subtraction is
    corrected in the exponential: the relative error does not grow with the magnitude of the logits.

    Examples
    --------
    >>> softmax([0.0, 0.0, -math.inf])
    array([0.5, 0.5, 0. ])

    References
    ----------
    Bridle (1990), Probabilistic Interpretation of Feedforward Classification Network Outputs
    """
    xp, (logits,) = as_arrays("softmax", logits=logits)
    check_classes_axis("softmax", axis, logits=logits)
    exponentials = exp_below_maximum(xp, logits, axis)[1]
    return exponentials / xp.sum(exponentials, axis=axis, keepdims=True)


def log_softmax(logits: Array, *, axis: int = -1) -> Array:
    """Logarithm of the softmax, accurate also where the softmax itself underflows or rounds to 1.

    *Definition*: ``log_softmax(x)[j] = x[j] - log(sum(exp(x)))``, 0 or less, in nats. Parameters, shapes and errors are
    those of `softmax`.

    Notes
    -----
    *Numerics*: with the largest logit separated, ``log(sum(exp(x)))`` is the maximum plus ``log1p`` of the rest. The
    logarithm of a probability near 1 thus keeps its relative accuracy, where ``log(softmax(x))`` gives 0.

    Examples
    --------
    >>> float(log_softmax([0.0, -50.0])[0])
    -1.9287498479639178e-22

    References
    ----------
    Blanchard, Higham and Higham (2021), Accurately computing the log-sum-exp and softmax functions,
    doi:10.1093/imanum/draa038
    """
    xp, (logits,) = as_arrays("log_softmax", logits=logits)
    check_classes_axis("log_softmax", axis, logits=logits)
    shifted, exponentials, is_maximum = exp_below_maximum(xp, logits, axis)
    rest = xp.sum(xp.where(is_maximum, 0.0 * exponentials, exponentials), axis=axis, keepdims=True)
    return shifted - xp.log1p(rest)


def one_hot(labels: Array, classes: int, *, dtype: Any = None, check: bool = True) -> Array:
    """One-hot encoding: labels as distributions that put all probability on one class (entropy 0).

    *Definition*: ``one_hot(y)[j] = 1 if j == y else 0``.

    Parameters
    ----------
    labels : integer array of any shape, values in [0, classes)
    classes : the number of classes, the length of the new last axis.
    dtype : dtype of the result; the array library's default floating dtype if None.
    check : False skips the test of the range.

    Returns
    -------
    array (*labels.shape, classes) of zeros and ones.

    Raises
    ------
    ArgumentError
        The number of classes is not a whole number of 1 or more.
    DTypeError
        The labels are not integers, or the library has no such dtype.
    LabelError
        A label is outside [0, classes).

    Examples
    --------
    >>> one_hot([2, 0], 3)
    array([[0., 0., 1.],
           [1., 0., 0.]])
    """
    check_classes("one_hot", classes)
    xp, labels = as_labels("one_hot", classes, check, labels=labels)
    if dtype is None:
        dtype = xp.__array_namespace_info__().default_dtypes(device=None)["real floating"]
    device = array_api_compat.device(labels)
    is_label = labels[..., None] == xp.arange(classes, dtype=labels.dtype, device=device)
    try:
        return xp.astype(is_label, dtype)
    except TypeError as error:
        raise DTypeError(message("one_hot", "dtype", f"found {dtype!r} ({error})", "Pass a floating dtype")) from None
