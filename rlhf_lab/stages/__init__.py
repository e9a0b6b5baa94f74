"""The four stages, one file each, the same shape: run(profile, data, inputs, output, ...) -> StageResult."""
