// Loads a checkpoint, runs it, and takes ten AdamW steps that lower a loss: train FOLDER
#include <torch/torch.h>

#include <iostream>

#include "dpt/module.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: train FOLDER\n";
    return 2;
  }
  torch::manual_seed(0);
  dpt::DPTModel model = dpt::load(argv[1]);
  const torch::Tensor images = torch::randn({2, 3, 64, 96});
  const torch::Tensor depth = model->forward(images).depth;
  const torch::Tensor target = depth.detach() + torch::rand_like(depth);

  model->train();
  torch::optim::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(1e-3));
  double first = 0, last = 0;
  for (int step = 0; step < 10; ++step) {
    optimizer.zero_grad();
    const torch::Tensor loss = torch::l1_loss(model->forward(images).depth, target);
    loss.backward();
    optimizer.step();
    last = loss.item<double>();
    if (step == 0) first = last;
  }
  std::cout << "depth " << depth.sizes() << ", loss " << first << " -> " << last << "\n";
  return last < first ? 0 : 1;
}
