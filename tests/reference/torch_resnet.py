"""Residual and dense networks in plain PyTorch with torchvision's parameter names, for comparison only."""

import torch
from torch import nn
from torch.nn import functional


def conv(inputs, outputs, kernel=1, stride=1, groups=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)


class Block(nn.Module):
    """Basic or bottleneck block (v1.5: stride on the 3x3)."""

    def __init__(self, inputs, width, stride, bottleneck, groups, group_width):
        super().__init__()
        outputs = width * (4 if bottleneck else 1)
        if bottleneck:
            inner = int(width * (group_width / 64.0)) * groups
            sizes = [(inputs, inner, 1, 1, 1), (inner, inner, 3, stride, groups), (inner, outputs, 1, 1, 1)]
        else:
            sizes = [(inputs, outputs, 3, stride, 1), (outputs, outputs, 3, 1, 1)]
        self.count = len(sizes)
        for index, size in enumerate(sizes, start=1):
            setattr(self, f"conv{index}", conv(*size))
            setattr(self, f"bn{index}", nn.BatchNorm2d(size[1]))
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for index in range(1, self.count + 1):
            y = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(y))
            if index < self.count:
                y = functional.relu(y)
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class TorchResNet(nn.Module):
    """Returns the outputs of all stages."""

    def __init__(self, blocks, bottleneck, groups=1, group_width=64, narrowest=64):
        super().__init__()
        self.conv1 = conv(3, narrowest, 7, 2)
        self.bn1 = nn.BatchNorm2d(narrowest)
        inputs = narrowest
        for stage, count in enumerate(blocks, start=1):
            width, layers = narrowest * 2 ** (stage - 1), []
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                layers.append(Block(inputs, width, stride, bottleneck, groups, group_width))
                inputs = width * (4 if bottleneck else 1)
            setattr(self, f"layer{stage}", nn.Sequential(*layers))

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        outputs = []
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
            outputs.append(x)
        return outputs


class _DenseLayer(nn.Module):
    def __init__(self, inputs, growth):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, 4 * growth)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), conv(4 * growth, growth, 3)

    def forward(self, x):
        y = self.conv1(functional.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(functional.relu(self.norm2(y)))], 1)


class TorchDenseNet(nn.Module):
    """Returns the rectified norm behind each dense block (what a transition's convolution and the classifier see)."""

    def __init__(self, blocks, growth, stem):
        super().__init__()
        features = nn.Module()
        features.conv0, features.norm0 = conv(3, stem, 7, 2), nn.BatchNorm2d(stem)
        inputs = stem
        for index, count in enumerate(blocks, start=1):
            block = nn.Sequential()
            for layer in range(1, count + 1):
                block.add_module(f"denselayer{layer}", _DenseLayer(inputs, growth))
                inputs += growth
            features.add_module(f"denseblock{index}", block)
            if index < len(blocks):
                transition = nn.Module()
                transition.norm, transition.conv = nn.BatchNorm2d(inputs), conv(inputs, inputs // 2)
                features.add_module(f"transition{index}", transition)
                inputs //= 2
        features.norm5 = nn.BatchNorm2d(inputs)
        self.features, self.blocks = features, len(blocks)

    def forward(self, x):
        net = self.features
        x = functional.max_pool2d(functional.relu(net.norm0(net.conv0(x))), 3, 2, 1)
        outputs = []
        for index in range(1, self.blocks + 1):
            x = getattr(net, f"denseblock{index}")(x)
            last = index == self.blocks
            x = functional.relu((net.norm5 if last else getattr(net, f"transition{index}").norm)(x))
            outputs.append(x)
            if not last:
                x = functional.avg_pool2d(getattr(net, f"transition{index}").conv(x), 2)
        return outputs


RESNETS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
    "resnext50": ((3, 4, 6, 3), True, 32, 4),
    "resnext101": ((3, 4, 23, 3), True, 32, 8),
}
DENSENETS = {
    "densenet121": ((6, 12, 24, 16), 32, 64),
    "densenet161": ((6, 12, 36, 24), 48, 96),
    "densenet169": ((6, 12, 32, 32), 32, 64),
}
PUBLISHED = (*RESNETS, *DENSENETS)


def torch_backbone(name):
    """The PyTorch counterpart of a backbone of ours."""
    return TorchResNet(*RESNETS[name]) if name in RESNETS else TorchDenseNet(*DENSENETS[name])


class TorchImageEncoder(nn.Module):
    """Backbone and projections with the published names: shallow, deep and whole of a batch [B, 3, S, S]."""

    def __init__(self, backbone, width):
        super().__init__()
        self.model = backbone
        with torch.no_grad():
            stages = self.model.eval()(torch.zeros(1, 3, 64, 64))
        self.local2_embedder = conv(stages[1].shape[1], width)
        self.local_embedder = conv(stages[2].shape[1], width)
        self.global_embedder = nn.Linear(stages[3].shape[1], width)

    def forward(self, x):
        stages = self.model(x)
        shallow, deep = self.local2_embedder(stages[1]), self.local_embedder(stages[2])
        return shallow, deep, self.global_embedder(stages[3].mean((2, 3)))
