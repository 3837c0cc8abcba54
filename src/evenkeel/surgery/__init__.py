# SPDX-License-Identifier: Apache-2.0
"""What is done to a finished model: its normalizers folded, recalibrated, frozen, upgraded."""
