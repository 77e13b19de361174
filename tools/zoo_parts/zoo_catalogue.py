"""Models of the zoo, by name: torchvision, timm and transformers in two exporters, Keras in two, the onnx wheel's.

A name is `ARCHITECTURE.EXPORTER`: `.ts` is PyTorch's TorchScript exporter at opset 17, `.dyn` its dynamo exporter at
opset 20, `.tf2onnx` and `.keras` are tf2onnx and Keras' own; models of the onnx wheel have no exporter.
`tools/zoo_parts/zoo_build.py` makes them. A model that is not here, though its library has it, is in `SKIPPED`, with
the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import zip_longest
from typing import Any


def _names(text: str) -> list[str]:
    return text.split()


_CLASSIFICATION = _names("""
    alexnet convnext_tiny convnext_small convnext_base densenet121 densenet161 densenet169 densenet201 efficientnet_b0
    efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_v2_s efficientnet_v2_m
    googlenet inception_v3 maxvit_t mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large
    mobilenet_v3_small regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_y_400mf
    regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf resnet18 resnet34 resnet50 resnet101 resnet152
    resnext50_32x4d resnext101_32x8d resnext101_64x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5
    shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_t swin_s swin_v2_t swin_v2_s vgg11 vgg11_bn vgg13 vgg13_bn vgg16
    vgg16_bn vit_b_16 vit_b_32 wide_resnet50_2 wide_resnet101_2
""")
_SEGMENTATION = _names("""
    deeplabv3_mobilenet_v3_large deeplabv3_resnet50 deeplabv3_resnet101 fcn_resnet50 fcn_resnet101
    lraspp_mobilenet_v3_large
""")
_FLOW = ["raft_small", "raft_large"]
_VIDEO = ["mc3_18", "r2plus1d_18", "r3d_18", "s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t"]
_DETECTION = _names("""
    fasterrcnn_mobilenet_v3_large_320_fpn fasterrcnn_mobilenet_v3_large_fpn fasterrcnn_resnet50_fpn
    fasterrcnn_resnet50_fpn_v2 fcos_resnet50_fpn keypointrcnn_resnet50_fpn maskrcnn_resnet50_fpn
    maskrcnn_resnet50_fpn_v2 retinanet_resnet50_fpn retinanet_resnet50_fpn_v2 ssd300_vgg16
    ssdlite320_mobilenet_v3_large
""")
SKIPPED = {
    **{
        name: f"only wider or deeper than {sibling}, which is here"
        for name, sibling in (
            ("convnext_large", "convnext_base"), ("efficientnet_b6", "efficientnet_b5"),
            ("efficientnet_b7", "efficientnet_b5"), ("efficientnet_v2_l", "efficientnet_v2_m"),
            ("regnet_x_16gf", "regnet_x_8gf"), ("regnet_x_32gf", "regnet_x_8gf"), ("regnet_y_16gf", "regnet_y_8gf"),
            ("regnet_y_32gf", "regnet_y_8gf"), ("regnet_y_128gf", "regnet_y_8gf"), ("swin_b", "swin_s"),
            ("swin_v2_b", "swin_v2_s"), ("vgg19", "vgg16"), ("vgg19_bn", "vgg16_bn"), ("vit_l_16", "vit_b_16"),
            ("vit_l_32", "vit_b_32"), ("vit_h_14", "vit_b_16"), ("swin3d_s", "swin3d_t"), ("swin3d_b", "swin3d_t"),
            ("Keras VGG19", "VGG16"), ("Keras ResNet152", "ResNet101"), ("Keras ResNet152V2", "ResNet101V2"),
            ("Keras NASNetLarge", "NASNetMobile"), ("Keras EfficientNetB5 to B7", "EfficientNetB4"),
            ("Keras EfficientNetV2L", "EfficientNetV2M"), ("Keras ConvNeXtLarge and XLarge", "ConvNeXtBase"),
        )
    }
}  # fmt: skip
"""Models of torchvision and Keras that are not built, and why."""

# One line a family, the smallest variant first; further variants differ in structure, not only in size.
_TIMM = """
    beit_base_patch16_224
    halonet26t botnet26t_256 lambda_resnet26t sehalonet33ts eca_halonext26ts lambda_resnet26rpt_256 eca_botnext26ts_256
    resnet32ts gernet_s repvgg_a0 mobileone_s0 regnetz_b16 gcresnext26ts bat_resnext26ts resnet50_clip test_byobnet
    resnet51q seresnet33ts eca_resnet33ts resnext26ts repvgg_b1g4 regnetz_b16_evos mobileone_s4 resnet50_mlp
    cait_xxs24_224
    coat_tiny coat_lite_tiny
    convit_tiny
    convmixer_1024_20_ks9_p14
    convnext_atto convnextv2_atto convnext_zepto_rms convnext_atto_ols test_convnext test_convnext2 test_convnext3
    cpubone_nano cpubone_b1_dwnorm
    crossvit_tiny_240 crossvit_9_dagger_240
    csatv2
    cs3darknet_s cs3darknet_focus_s cspresnet50 cspresnext50 sedarknet21 cspdarknet53 darknet17
    cspnext_tiny
    davit_tiny
    deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224
    densenet121 densenetblur121d
    dla46_c dla46x_c dla34 dla60_res2net dla60_res2next
    dpn68 dpn48b
    edgenext_xx_small edgenext_small_rw
    efficientformer_l1
    efficientformerv2_s0
    mobilenetv2_035 mixnet_s tinynet_e fbnetc_100 mnasnet_050 spnasnet_100 semnasnet_075 efficientnet_b0
    efficientnet_es mobilenetv1_100 efficientnetv2_rw_t efficientnet_lite0 tf_efficientnet_b0 tf_mixnet_s
    efficientnet_b0_gn efficientnet_b0_g8_gn efficientnet_blur_b0 test_efficientnet test_efficientnet_gn
    test_efficientnet_ln tf_efficientnetv2_b0 efficientnet_cc_b0_4e efficientnet_b1_pruned
    efficientvim_m1
    efficientvit_b0 efficientvit_l1
    efficientvit_m0
    eva02_tiny_patch14_224 vit_small_patch16_dinov3 vit_small_patch16_rope_224 vit_small_patch16_rope_mixed_224
    vit_small_patch16_rope_ape_224 vit_pe_core_tiny_patch16_384
    fasternet_t0
    fastvit_t8 fastvit_sa12 fastvit_mci0
    focalnet_tiny_srf focalnet_tiny_lrf
    gcvit_xxtiny
    ghostnet_050 ghostnetv2_100 ghostnetv3_050
    hardcorenas_a
    hgnetv2_b0 hgnet_tiny
    hiera_tiny_224 hiera_small_abswin_256
    hieradet_small sam2_hiera_tiny
    hrnet_w18_small
    iformer_t
    inception_next_atto
    inception_resnet_v2
    inception_v3
    inception_v4
    lcnetv2_small
    levit_128s levit_conv_128s
    lowformer_b0 lowformer_e1
    mambaout_femto test_mambaout
    test_maxvit test_coatnet coatnet_pico_rw_224 coatnet_nano_cc_224 coatnext_nano_rw_224 coatnet_rmlp_nano_rw_224
    maxvit_pico_rw_256 maxvit_rmlp_pico_rw_256 maxxvit_rmlp_nano_rw_256 maxxvitv2_nano_rw_256 coatnet_bn_0_rw_224
    caformer_s18 convformer_s18 poolformer_s12 poolformerv2_s12
    mixer_s32_224 gmlp_ti16_224 resmlp_12_224 gmixer_12_224
    mobilenetv3_small_050 fbnetv3_b lcnet_035 mobilenetv4_conv_small_035 mobilenetv4_conv_medium mobilenetv3_rw
    mobilenetv4_conv_aa_medium mobilenetv4_hybrid_medium_075 tf_mobilenetv3_small_minimal_100
    mobilevit_xxs mobilevitv2_050
    mvitv2_tiny mvitv2_small_cls
    naflexvit_base_patch16_gap
    nest_tiny nest_tiny_jx
    nextvit_small
    test_nfnet nf_resnet26 nf_regnet_b0 nfnet_l0 eca_nfnet_l0 nf_seresnet26 nf_ecaresnet26
    pit_ti_224 pit_ti_distilled_224
    pvt_v2_b0 pvt_v2_b2_li
    qwen3_vit_88m
    rdnet_tiny
    regnetx_002 regnety_002 regnetz_005 regnetv_040
    repghostnet_050
    repvit_m0_9
    res2net50_14w_8s res2next50 res2net50d
    resnest14d resnest50d_4s2x40d
    resnet10t resnet14t resnet26d seresnet18 resnetaa34d resnetblur18 ecaresnet26t ecaresnetlight seresnext26t_32x4d
    resnet50_gn resnetrs50 resnext50d_32x4d ecaresnet50d_pruned test_resnet seresnextaa101d_32x8d
    resnetv2_18 resnetv2_50x1_bit resnetv2_50d_gn resnetv2_50d_frn resnetv2_50d_evos
    rexnet_100 rexnetr_100
    selecsls42b selecsls60
    legacy_seresnet18 legacy_seresnext26_32x4d
    sequencer2d_s
    shvit_s1
    skresnet18 skresnext50_32x4d
    starnet_s050 starnet_s1
    swiftformer_xs
    swin_tiny_patch4_window7_224 swin_s3_tiny_224
    swinv2_tiny_window8_256
    swinv2_cr_tiny_224 swinv2_cr_tiny_ns_224
    tiny_vit_5m_224
    tnt_s_patch16_224 tnt_s_legacy_patch16_224
    tresnet_m
    twins_svt_small twins_pcpvt_small
    vgg11_bn
    visformer_tiny
    vit_tiny_patch16_224 test_vit test_vit2 test_vit3 test_vit4 flexivit_small vit_small_patch14_dinov2
    vit_base_patch32_clip_224 vit_base_patch16_rpn_224 vit_base_patch16_xp_224 beit3_base_patch16_224
    vit_tiny_r_s16_p8_224 vit_small_r26_s32_224 vit_small_resnet26d_224 vit_base_mci_224
    test_vit_relpos vit_relpos_small_patch16_224 vit_srelpos_small_patch16_224
    samvit_base_patch16_224
    vitamin_small_224
    volo_d1_224
    ese_vovnet19b_slim ese_vovnet19b_dw vovnet39a eca_vovnet39b ese_vovnet39b_evos
    legacy_xception
    xception41 xception41p
    xcit_nano_12_p16_224 xcit_nano_12_p8_224
    nasnetalarge
    pnasnet5large
"""
TIMM_FAMILIES = [line.split() for line in _TIMM.replace("\n    ", "\n").strip().split("\n") if line]
_TRANSFORMERS = _names("""
    bert distilbert gpt2 vit roberta electra albert deit beit opt llama mistral qwen2 gemma gpt_neox t5_encoder
    mobilebert mpnet deberta_v2 clip_vision clip_text swin segformer convnextv2 dinov2 xlm_roberta bloom whisper_encoder
""")
_LIGHT = _names("""
    bvlc_alexnet densenet121 inception_v1 inception_v2 resnet50 shufflenet squeezenet vgg19 zfnet512
""")
_KERAS = _names("""
    MobileNetV2 MobileNetV3Small MobileNet EfficientNetB0 EfficientNetV2B0 NASNetMobile ResNet50 DenseNet121
    ConvNeXtTiny MobileNetV3Large ResNet50V2 InceptionV3 Xception InceptionResNetV2 EfficientNetB1 EfficientNetB2
    EfficientNetB3 EfficientNetV2B1 EfficientNetV2B2 EfficientNetV2B3 DenseNet169 DenseNet201 ResNet101 ResNet101V2
    EfficientNetV2S ConvNeXtSmall VGG16 EfficientNetB4 EfficientNetV2M ConvNeXtBase
""")


@dataclass(frozen=True)
class Entry:
    """Model of the zoo.

    Attributes:
        name: unique, ends in the exporter.
        library: where the architecture comes from.
        architecture: its name there.
        exporter: "ts", "dyn", "tf2onnx", "keras" or "" (an ONNX file to begin with).
        size: side of the image it is exported and verified with; 0: what the architecture prefers.
        options: further arguments of the library's constructor.
    """

    name: str
    library: str
    architecture: str
    exporter: str
    size: int = 0
    options: dict[str, Any] = field(default_factory=dict)


def _torchvision(names: Sequence[str], exporter: str, size: int, library: str = "torchvision") -> Iterator[Entry]:
    for name in names:
        yield Entry(f"{name}.{exporter}", library, name, exporter, size)


_SIZES = {  # sides of images where 96 is too small, or where the architecture fixes one
    "inception_v3": 128, "maxvit_t": 224, "vit_b_16": 224, "vit_b_32": 224, "alexnet": 224,
    **{f"vgg{n}{bn}": 224 for n in (11, 13, 16) for bn in ("", "_bn")},
}  # fmt: skip


def catalogue() -> list[Entry]:
    """Return every model in the order of building: all families early, the expensive ones late."""
    out: list[Entry] = []

    def add(library: str, names: Sequence[str], exporter: str, prefix: str = "", size: int = 0) -> None:
        suffix = f".{exporter}" if exporter else ""
        out.extend(
            Entry(f"{prefix}{n}{suffix}", library, n, exporter, _SIZES.get(n, size) if size else 0) for n in names
        )

    by_rank = [[n for n in rank if n] for rank in zip_longest(*TIMM_FAMILIES)]
    add("transformers", _TRANSFORMERS, "ts", "hf_")
    add("light", _LIGHT, "", "light_")
    add("timm", by_rank[0], "ts", "timm_")
    add("torchvision", _CLASSIFICATION, "ts", size=96)
    add("timm", [n for rank in by_rank[1:] for n in rank], "ts", "timm_")
    add("torchvision", _SEGMENTATION, "ts", size=96)
    add("flow", _FLOW, "ts", size=96)
    add("video", _VIDEO, "ts")
    add("detection", _DETECTION, "ts")
    add("transformers", _TRANSFORMERS, "dyn", "hf_")
    add("torchvision", _CLASSIFICATION, "dyn", size=96)
    add("torchvision", _SEGMENTATION, "dyn", size=96)
    add("flow", _FLOW, "dyn", size=96)
    add("video", _VIDEO, "dyn")
    add("timm", by_rank[0], "dyn", "timm_")
    add("detection", _DETECTION, "dyn")
    add("keras", _KERAS, "tf2onnx", "keras_")
    add("keras", _KERAS, "keras", "keras_")
    return out


def chosen(patterns: Sequence[str]) -> list[Entry]:
    """Return the models whose names match one of the patterns.

    Raises:
        ValueError: a pattern that matches none.
    """
    entries = catalogue()
    for pattern in patterns:
        if not any(fnmatchcase(e.name, pattern) for e in entries):
            raise ValueError(f"no model of the zoo matches {pattern!r}")
    return [e for e in entries if any(fnmatchcase(e.name, p) for p in patterns)]
