"""The classifiers that read a grade from features: how each is built, its settings, and how it is fitted and applied.

Features are float [S, N, D]: of S sides of each of N photographs, as taken and mirrored. A classifier is trained on all
sides and its probabilities are averaged over them. Every grade has the same total weight in training where
scikit-learn offers it. Cross-validation on the training split chooses one setting of each grid.
"""

import dataclasses
import warnings
from collections.abc import Callable

import numpy as np
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

# The number of epochs of the MLP is part of its setting. A filter for the process, of this message alone: fits run in
# threads, and `warnings.catch_warnings` is not thread-safe
warnings.filterwarnings("ignore", "Stochastic Optimizer: Maximum iterations", ConvergenceWarning)

ORDINAL_C = 0.003  # of the ordinal regression that `idrid-jax grade` chose for EfficientNet-Lite0 at 224 pixels
MAX_ITERATIONS = 2000  # of the solver of logistic regressions; 100 to 300 are used


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A kind of classifier.

    Attributes:
      title: its name in tables.
      grid: the settings to choose from, keyword arguments of `build`.
      build: (shape, seed, **setting) -> a scikit-learn estimator, not fitted; shape: rows and columns of the features
        that it will be fitted to.
    """

    title: str
    grid: tuple[dict, ...]
    build: Callable[..., BaseEstimator]


class OrdinalRegression(ClassifierMixin, BaseEstimator):
    """Ordinal regression by one logistic regression for each threshold, y > k.

    P(y = k) is the difference of P(y > k - 1) and P(y > k), which are made to decrease with k. Source: Frank and Hall,
    "A simple approach to ordinal classification", ECML 2001, section 2. C: inverse strength of the L2 penalty.

    Attributes (fitted): classes_: the G classes present. coef_: float [G - 1, D]. intercept_: float [G - 1].
    """

    def __init__(self, C: float = 1.0):
        self.C = C

    def fit(self, x: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> "OrdinalRegression":
        """Fit to x float [N, D] and y int [N], at least two classes. sample_weight: float [N]; None: equal weights.

        At each threshold, the samples above and those below get the same total weight.
        """
        weights = np.ones(len(y)) if sample_weight is None else sample_weight
        self.classes_, models = np.unique(y), []
        for threshold in self.classes_[:-1]:
            above = y > threshold
            totals = np.where(above, weights[above].sum(), weights[~above].sum())
            model = LogisticRegression(C=self.C, max_iter=MAX_ITERATIONS)
            models.append(model.fit(x, above, sample_weight=weights * weights.sum() / 2 / totals))
        self.coef_ = np.concatenate([model.coef_ for model in models])
        self.intercept_ = np.concatenate([model.intercept_ for model in models])
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return ordinal_probabilities(x @ self.coef_.T + self.intercept_)


def ordinal_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return class probabilities, float [N, G], from logits of exceeding each class but the last, float [N, G - 1]."""
    above = np.minimum.accumulate(expit(logits), axis=1)
    above = np.concatenate([np.ones((len(above), 1)), above, np.zeros((len(above), 1))], axis=1)
    return above[:, :-1] - above[:, 1:]


def fit(classifier: Classifier, setting: dict, features: np.ndarray, labels: np.ndarray, *, seed: int) -> BaseEstimator:
    """Fit a classifier to features [S, N, D] and labels, int [N]. Of a single class, it always reads that one."""
    rows, labels = features.reshape(-1, features.shape[-1]), np.tile(labels, len(features))
    one_class = (labels == labels[0]).all()
    model = DummyClassifier() if one_class else classifier.build(rows.shape, seed, **setting)
    with threadpool_limits(1):  # with BLAS's own threads a fit takes two to six times as long
        return model.fit(rows, labels)


def probabilities(model: BaseEstimator, features: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the probability of each class, the mean over sides, from features [S, N, D]: float64 [N, num_classes].

    A class that was absent in training has probability 0.
    """
    rows = features.reshape(-1, features.shape[-1])
    if hasattr(model, "predict_proba"):
        present = model.predict_proba(rows)
    else:
        scores = model.decision_function(rows)
        present = softmax(scores if scores.ndim == 2 else np.stack([np.zeros_like(scores), scores], axis=1), axis=1)
    result = np.zeros((len(rows), num_classes))
    result[:, model.classes_] = present
    return result.reshape(*features.shape[:2], num_classes).mean(axis=0)


# --- how each is built: (shape of the training features, seed, setting) -> an estimator


def _multinomial(shape, seed, C):
    return make_pipeline(StandardScaler(), _logistic(C))


def _logistic(C):
    return LogisticRegression(C=C, class_weight="balanced", max_iter=MAX_ITERATIONS)


def _ordinal(shape, seed, C):
    return make_pipeline(StandardScaler(), OrdinalRegression(C))


def _support_vectors(shape, seed, C):
    """Radial kernel. It has no probabilities: `probabilities` takes the softmax of its decision function."""
    return make_pipeline(StandardScaler(), SVC(C=C, class_weight="balanced"))


def _nearest_neighbors(shape, seed, neighbors):
    """On 64 principal components, weighted by 1 / distance. Without class weights."""
    nearest = KNeighborsClassifier(min(neighbors, shape[0]), weights="distance")
    return make_pipeline(StandardScaler(), PCA(min(64, *shape), random_state=seed), nearest)


def _random_forest(shape, seed, leaf):
    """`leaf`: fewest photographs in a leaf."""
    weights = "balanced_subsample"
    return RandomForestClassifier(100, min_samples_leaf=leaf, class_weight=weights, random_state=seed)


def _gradient_boosting(shape, seed, rate):
    """On 32 principal components, because all features take minutes; `rate` is the learning rate."""
    options = {"max_iter": 60, "max_leaf_nodes": 8, "class_weight": "balanced", "early_stopping": False}
    boosting = HistGradientBoostingClassifier(learning_rate=rate, random_state=seed, **options)
    return make_pipeline(StandardScaler(), PCA(min(32, *shape), random_state=seed), boosting)


def _perceptron(shape, seed, alpha):
    """One hidden layer of 64, 40 epochs of Adam; `alpha` is the L2 penalty. Without class weights."""
    return make_pipeline(StandardScaler(), MLPClassifier((64,), alpha=alpha, max_iter=40, random_state=seed))


def _grid(name, *values):
    return tuple({name: value} for value in values)


CLASSIFIERS = {
    "logistic_regression": Classifier("logistic regression", _grid("C", 0.001, 0.003, 0.01, 0.03), _multinomial),
    "ordinal_regression": Classifier("ordinal regression", _grid("C", 0.003, 0.01, 0.03, 0.1), _ordinal),
    "svm": Classifier("SVM", _grid("C", 1.0, 10.0), _support_vectors),
    "nearest_neighbors": Classifier("nearest neighbors", _grid("neighbors", 10, 20, 40), _nearest_neighbors),
    "random_forest": Classifier("random forest", _grid("leaf", 3, 6), _random_forest),
    "gradient_boosting": Classifier("gradient boosting", _grid("rate", 0.1), _gradient_boosting),
    "mlp": Classifier("MLP", _grid("alpha", 1.0, 10.0, 30.0), _perceptron),
}
