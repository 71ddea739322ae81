#include "dpt/io/encoder_weights.h"

#include "dpt/encoder/vit.h"
#include "dpt/io/shapes.h"
#include "dpt/io/source.h"

namespace dpt {

namespace {

constexpr const char* kFunction = "encoder_weights";  // as Python calls the option

// Names that only other encoders have; the first that is found tells.
struct Other {
  const char* prefix;
  const char* what;
};
constexpr Other kOthers[] = {
    {"blocks.0.attn.q_bias", "a BEiT"},
    {"layers.0.blocks.", "a Swin transformer"},
    {"attn_pool.", "a SigLIP"},
    {"blocks.0.ls1.", "a ViT with layer scale (DeiT-III, DINOv2)"},
    {"blocks.0.gamma_1", "a ViT with layer scale (DeiT-III)"},
};

std::string origin_of(const TensorFile& file) {
  return std::string(kFunction) + ": '" + file.name + "'";
}

// The encoder in a file, which may be all that the file holds. Of an encoder alone the config is
// the model's where shapes do not tell.
Source identify_encoder(TensorFile file, const Config& config) {
  for (const Other& other : kOthers) {
    TORCH_CHECK_VALUE(!has_prefix(file.tensors, other.prefix), origin_of(file), " is ", other.what,
                      ", which torchdpt does not have; the encoders that it has are ViT, DeiT, "
                      "ViT-Hybrid, ResNet and ResNeXt");
  }
  auto alone = find_encoder_names(file.tensors);
  if (!alone) return identify(std::move(file), nullptr, kFunction);
  file.config.reset();  // of another project
  Source source{.file = std::move(file), .config = config, .names = std::move(alone->names)};
  source.config.encoder = alone->encoder;
  const std::string origin = origin_of(source.file);
  set_encoder_fields({source.file.tensors, source.names, origin}, source.config);
  TORCH_CHECK_VALUE(alone->encoder == EncoderKind::kResNet || config.width == 64 * config.heads,
                    origin, " does not say how many heads there are, and the model's ",
                    config.heads, " have ", config.width / config.heads,
                    " channels each, where those of ViT and DeiT have 64; set heads to ",
                    config.width / 64);
  return source;
}

// What no tensor's shape shows, or shows less clearly.
void check_same_encoder(const Source& source, const Config& ours) {
  const Config theirs = canonical(source.config), mine = canonical(ours);
  const auto same = [&](const char* name, const json::Value& their, const json::Value& my) {
    TORCH_CHECK_VALUE(their == my, origin_of(source.file), " has an encoder with ", name, " = ",
                      json::dump(their), ", this model has ", json::dump(my),
                      "; change the config of one");
  };
  same("encoder", std::string(to_string(theirs.encoder)), std::string(to_string(mine.encoder)));
  same("heads", theirs.heads, mine.heads);
  same("depth", theirs.depth, mine.depth);
  same("qkv_bias", theirs.qkv_bias, mine.qkv_bias);
  same("distilled", theirs.distilled, mine.distilled);
  same("layer_norm_eps", theirs.layer_norm_eps, mine.layer_norm_eps);
  same("stage_depths", json::Array(theirs.stage_depths.begin(), theirs.stage_depths.end()),
       json::Array(mine.stage_depths.begin(), mine.stage_depths.end()));
  same("groups", theirs.groups, mine.groups);
  same("group_width", theirs.group_width, mine.group_width);
  same("weight_standardization", std::string(to_string(theirs.weight_standardization)),
       std::string(to_string(mine.weight_standardization)));
}

// Returns the side of the file's grid if it is another than the model's.
int64_t fit_pos_embed(Source& source, const Config& config) {
  if (config.encoder == EncoderKind::kResNet) return 0;
  const std::string origin = origin_of(source.file);
  const Shapes shapes{source.file.tensors, source.names, origin};
  const int64_t grid = pos_embed_grid(shapes, config.distilled);
  const int64_t wanted = config.image_size / config.patch_size;
  Tensor& pos_embed = source.file.tensors.at(source.names.names_of("encoder.pos_embed").front());
  if (grid == wanted || !pos_embed.is_floating_point()) return 0;
  pos_embed = resize_pos_embed(pos_embed, config.distilled ? 2 : 1, grid, wanted, wanted);
  return grid;
}

EncoderReport load(Model& model, TensorFile file) {
  Source source = identify_encoder(std::move(file), model.config);
  check_same_encoder(source, model.config);
  EncoderReport report{.unused = {}, .resized_from = fit_pos_embed(source, model.config)};
  Loader loader{source, kFunction, "; the encoder in the file is another network"};
  for_each_tensor(
      model.encoder,
      [&](const std::string& name, Tensor& tensor, const TensorInfo& info) {
        loader.load(name, tensor, info);
      },
      "encoder.");
  report.unused = loader.rest();
  // In the file of an encoder alone, what is not known belongs to another one.
  std::vector<std::string> unexpected;
  if (find_encoder_names(source.file.tensors)) {
    for (const std::string& name : report.unused) {
      if (!source.names.is_unused(name)) unexpected.push_back(name);
    }
  }
  loader.refuse(unexpected);
  return report;
}

}  // namespace

EncoderReport load_encoder(Model& model, const std::string& path) {
  return load(model, open_file(path, kFunction));
}

EncoderReport load_encoder(Model& model, const std::map<std::string, Tensor>& tensors,
                           const std::string& origin) {
  return load(model, from_tensors(tensors, origin, kFunction));
}

}  // namespace dpt
