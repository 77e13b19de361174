"""Options of every stage, each declared once: type, default, bounds, help text, heading.

The command line generates its options from these dataclasses, recipes read their steps into them, and the Python API
uses them or their fields as keyword arguments. This package loads only the standard library.
"""

from onnxprune.options._declare import HEADINGS as HEADINGS
from onnxprune.options._declare import ChoiceError as ChoiceError
from onnxprune.options._declare import Declared as Declared
from onnxprune.options._declare import OptionError as OptionError
from onnxprune.options._declare import Options as Options
from onnxprune.options._declare import Spec as Spec
from onnxprune.options._declare import check as check
from onnxprune.options._declare import declared as declared
from onnxprune.options._declare import option as option
from onnxprune.options._text import PAIRS as PAIRS
from onnxprune.options.budget import Budget as Budget
from onnxprune.options.budget import EvaluationData as EvaluationData
from onnxprune.options.budget import FrontierOptions as FrontierOptions
from onnxprune.options.budget import FrontierOutput as FrontierOutput
from onnxprune.options.data import AccuracyData as AccuracyData
from onnxprune.options.data import CalibrationData as CalibrationData
from onnxprune.options.data import Preprocessing as Preprocessing
from onnxprune.options.data import Reading as Reading
from onnxprune.options.data import RecoveryData as RecoveryData
from onnxprune.options.data import RequiredData as RequiredData
from onnxprune.options.data import SampleOptions as SampleOptions
from onnxprune.options.data import Sampling as Sampling
from onnxprune.options.data import VerificationData as VerificationData
from onnxprune.options.measuring import Benchmark as Benchmark
from onnxprune.options.measuring import Device as Device
from onnxprune.options.measuring import Execution as Execution
from onnxprune.options.measuring import Machine as Machine
from onnxprune.options.measuring import Measuring as Measuring
from onnxprune.options.measuring import Prediction as Prediction
from onnxprune.options.measuring import ReportMeasurements as ReportMeasurements
from onnxprune.options.measuring import Timing as Timing
from onnxprune.options.output import ModelOutput as ModelOutput
from onnxprune.options.output import Output as Output
from onnxprune.options.output import Restarting as Restarting
from onnxprune.options.output import Resuming as Resuming
from onnxprune.options.output import Tolerance as Tolerance
from onnxprune.options.output import Verifying as Verifying
from onnxprune.options.planning import Constraints as Constraints
from onnxprune.options.planning import CurvesInput as CurvesInput
from onnxprune.options.planning import Distribution as Distribution
from onnxprune.options.planning import Normalizing as Normalizing
from onnxprune.options.planning import Planning as Planning
from onnxprune.options.planning import ScoresInput as ScoresInput
from onnxprune.options.planning import SensitivitySweep as SensitivitySweep
from onnxprune.options.recovery import AfterPruning as AfterPruning
from onnxprune.options.recovery import Recovery as Recovery
from onnxprune.options.scoring import AnalysisOptions as AnalysisOptions
from onnxprune.options.scoring import AttentionOptions as AttentionOptions
from onnxprune.options.scoring import Scoring as Scoring
from onnxprune.options.shapes import InputShapes as InputShapes
from onnxprune.options.shapes import Shape as Shape
from onnxprune.options.shapes import shape_of as shape_of
from onnxprune.options.sparsity import Sparsifying as Sparsifying
from onnxprune.options.sparsity import SparsityScope as SparsityScope
from onnxprune.options.sparsity import SparsitySweep as SparsitySweep
from onnxprune.options.tasks import ReferenceModel as ReferenceModel
from onnxprune.options.tasks import ReportedMetric as ReportedMetric
from onnxprune.options.tasks import TaskOptions as TaskOptions
from onnxprune.options.tasks import task_options as task_options
from onnxprune.options.training import Distillation as Distillation
from onnxprune.options.training import Training as Training
from onnxprune.options.training import TrainingMethod as TrainingMethod
