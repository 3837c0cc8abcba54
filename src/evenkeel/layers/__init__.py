# SPDX-License-Identifier: Apache-2.0
"""One shell a framework: weights, configuration, call. Every number comes from `functional`."""
