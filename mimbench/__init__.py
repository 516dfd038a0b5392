"""mimbench: pretrain, evaluate and compare masked-image-modelling vision encoders."""
