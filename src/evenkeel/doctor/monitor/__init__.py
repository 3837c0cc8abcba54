# SPDX-License-Identifier: Apache-2.0
"""What training does to the normalizers, epoch by epoch."""
